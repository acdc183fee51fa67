"""From a PyTorch model to Stretto's IR: capture, targets, and the model's parameters.

Start reading at `capture.py`; `captured.py` says what capture hands on, `targets.py` where models come from.
"""
