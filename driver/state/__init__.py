"""A model's state on disk: weights as safetensors, checkpoints of model and optimizer."""
