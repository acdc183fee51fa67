"""Capture: from an `nn.Module` and one call of it to a functional graph of forward and backward.

Start reading at `capture.py`; `traced.py` is the module that torch traces, `joint.py` traces it, `assemble.py` orders
the graph's inputs and outputs. Rewrites of the traced graph are in `frontend/graph/`.
"""
