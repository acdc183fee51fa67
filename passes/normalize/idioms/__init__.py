"""The idioms of `raise-idioms` and `lower-idioms`: their patterns, their semantics, and their bodies.

Lives here: a function's dataflow as plain Python (`dataflow.py`), matching of graphs (`pattern.py`), the backward that
autograd derives from a recognised forward (`derive.py`), one file per idiom, `reference.py` (the meaning of every nn
operation) and `bodies.py` (those of functions that a target may have kernels for). Not here: the passes, one folder up.
"""
