"""What the mask of an attention hides, found by how the model computes it: `find-causal-masks`.

`known.py` says what may be known of a tensor, `elementwise.py` and `views.py` what operations make of it, and
`dataflow.py` follows it through functions. Start reading at `find_causal_masks.py`, then `known.py`.
"""
