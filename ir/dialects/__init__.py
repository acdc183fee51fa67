"""The dialects: which operations exist, and how MLIR gets to know them.

`nn.py` and `comm.py` list ours, `schemas.py` takes the `aten` ones from torch; `context.py` loads all. Start reading at
`schemas.py`.
"""
