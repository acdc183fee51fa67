"""A model's tensors on disk: weights as safetensors. Checkpoints: `driver/checkpoints/`.

Start reading at `weights.py`; `state_tensors.py` says which tensors of a model are saved. It imports no other room of
`driver/`.
"""
