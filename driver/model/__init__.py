"""A compiled model: `stretto.compile`, torch's backend, and what a compiled model keeps between calls.

Start reading at `decorator.py`, then `compiled_module.py`; `variants.py` is one program and the calls that it serves.
Not here: how a program is made (`driver/compile/`), weights (`driver/state/`), and checkpoints, which import this
room (`driver/checkpoints/`).
"""
