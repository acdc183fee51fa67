"""A model's state on disk: weights as safetensors, checkpoints of model and optimizer.

Start reading at `weights.py` and `checkpoints.py`; `state_tensors.py` says which tensors of a model are saved.
"""
