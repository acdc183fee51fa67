"""Statements about what lives in memory from the forward to the backward. Start at `recompute.py`."""
