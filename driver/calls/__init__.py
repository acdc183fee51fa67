"""`compile --check`: a new program, and the calls of a training loop through `stretto.compile`, beside eager PyTorch.

Start reading at `compile_check.py`. The calls are in `loop.py`, and `comparison.py` judges them. Checks of a program
alone (`driver/check/`) do not go through `driver/model/`; this one does, with the target's own weights and example
inputs, which may be extreme, and with all outputs.
"""
