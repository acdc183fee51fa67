"""From a PyTorch model to the IR: targets, capture, and conversion of the captured graph to a module.

Start reading at `capture/capture.py`. `captured.py` has its result, `targets/` loads models, `to_ir.py` converts to the
IR, `trace_errors.py` turns errors of torch into errors at the user's line.
"""
