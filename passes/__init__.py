"""Rewrites of the IR: one pass per file, the registry of their names, and the manager that runs and verifies them.

Lives here: passes and the sharding rules they use (`sharding/`). Not here: capture of modules (`frontend/`) and their
translation to programs (`backends/`). Start reading at `base.py`, then `registry.py`.
"""
