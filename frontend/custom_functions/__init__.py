"""Custom autograd functions: a `torch.autograd.Function` of the model keeps the backward that it defines.

Start reading at `recording.py`, which runs forward and backward of a function in line during the trace; `extraction.py`
cuts both out of the traced graph, into the module of `custom_function.py` that autograd runs in the joint trace.
"""
