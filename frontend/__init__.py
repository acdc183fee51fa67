"""From a PyTorch model to Stretto's IR: targets, capture, and the conversion of a captured graph to a module.

Start reading at `capture/capture.py`; `captured.py` says what capture hands on, `targets/` where models come from,
`to_ir.py` converts. What goes wrong inside torch is put into the user's terms in `trace_errors.py`.
"""
