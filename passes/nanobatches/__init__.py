"""The pass that runs layers on parts of the tokens or of the batch, for memory or for overlap.

Start at `cut_nanobatches.py`. `region.py` says which dim and which modules a statement is about, `ways.py` how one
operation runs on a part, `placing.py` which operations of a function do, `order.py` in which order, and
`rewriting.py` builds the new function. `cuts.py` takes parts and joins them.
"""
