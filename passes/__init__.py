"""Rewrites of the IR: one pass per file, the registry of their names, and the manager that runs and verifies them.

Rooms: `normalize/` (one form for each computation), `layers/` (folding equal layers), `masks/` (what masks of attention
hide), `sharding/` (placements and the rules they use), `partition/` (local tensors and collectives), `pipelining/`
(stages and microbatches), `overlap/` (when collectives start), `fusion/` (chains of small operations become functions).
`default_pipeline.py` says which passes run, in which
order. Not here: capture of modules (`frontend/`) and their translation to programs (`backends/`). Start reading at
`base.py`, then `registry.py`.
"""
