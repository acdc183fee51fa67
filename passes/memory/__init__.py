"""Passes that decide what is kept in memory from the forward to the backward. Start at `recompute.py`.

`regions.py` says which operations a statement is about, `again.py` copies them into the backward, `kept.py` counts the
bytes that are kept. `fitting.py` chooses for `recompute auto`, by the estimate of `peak.py`. `split_loss.py` is
the other pass: `loss_region.py` finds what runs in chunks, and `chunks.py` rebuilds main.
"""
