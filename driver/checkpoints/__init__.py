"""Checkpoints of a compiled model and its optimizer on disk. Start reading at `checkpoints.py`.

`reader.py` decides whether a checkpoint is read as data or, if `trusted`, by torch: `metadata.py` reads `.metadata` and
`archive.py` each entry, both through `pickle_data.py`, which unpickles nothing.
May import `model/` and `state/`; only the package's root imports this one.
"""
