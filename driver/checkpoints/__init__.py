"""Checkpoints of a compiled model and its optimizer on disk. Start reading at `checkpoints.py`.

May import `model/` and `state/`; only the package's root imports this one.
"""
