"""The IR: MLIR modules of the `aten`, `nn` and `comm` dialects; build, read, print, verify and interpret them.

Here are the dialects (`dialects/`), types with placements, locations, operations as (name, arguments), modules, the
verifier, the reference interpreter (`interpreter/`), and the comparison of two modules (`equivalence/`). `frontend/`
makes modules, `passes/` rewrite them.
Start reading at `module.py`, then `operations.py`.
"""
