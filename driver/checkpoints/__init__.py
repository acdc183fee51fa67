"""Checkpoints of a compiled model and its optimizer on disk. Start reading at `checkpoints.py`.

`pickle_data.py`, `archive.py` and `metadata.py` read foreign files as data; `reader.py` makes torch's loader use them.
May import `model/` and `state/`; only the package's root imports this one.
"""
