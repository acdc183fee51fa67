"""Repeated layers as one function that is called many times: `fold-layers`, and `unfold-layers`, which undoes it.

Start reading at `fold_layers.py`.
"""
