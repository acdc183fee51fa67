"""The IR: MLIR modules of the `aten`, `nn` and `comm` dialects, and how to build, read, print and verify them.

Lives here: dialect definitions, types with placements, locations, operations as (name, arguments), modules, the
verifier. Not here: where modules come from (`frontend/`) and what rewrites them (`passes/`).
Start reading at `module.py`, then `operations.py`.
"""
