"""The dialects: the operations, and their registration with MLIR.

`nn.py` and `comm.py` define our operations, `schemas.py` takes the `aten` ones from torch, `context.py` loads all of
them. Start reading at `schemas.py`.
"""
