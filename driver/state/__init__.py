"""A model's tensors on disk: weights as safetensors.

It imports no other room of `driver/`; `model/` and `checkpoints/` may import it.
"""
