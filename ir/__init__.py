"""The IR: MLIR modules of the `aten`, `nn` and `comm` dialects, and how to build, read, print and verify them.

Lives here: dialect definitions (`dialects/`), types with placements, locations, operations as (name, arguments),
modules, the verifier, the reference interpreter (`interpreter/`), and comparing two modules (`equivalence/`). Not here:
where modules come from (`frontend/`) and what rewrites them (`passes/`).
Start reading at `module.py`, then `operations.py`.
"""
