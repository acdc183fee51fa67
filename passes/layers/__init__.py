"""Repeated layers as one function that is called many times: `fold-layers`, and `unfold-layers`, which undoes it.

Modules come folded from capture. `joint_layers.py` joins forward and backward of a layer for the passes that need both;
`argument_types.py` and `late_casts.py` change what crosses a call. Start reading at `fold_layers.py`.
"""
