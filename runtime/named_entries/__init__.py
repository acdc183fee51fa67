"""Named entries: several programs of one model, such as prefill and decode, in one folder with one set of tensors.

Start reading at `program_set.py`: the value, and its folder. `shared_tensors.py`: entries agree on what they share.
Not here: what runs the entries of a folder on one set of ranks (`../loaded_program.py`), and the functions in which the
stages of a pipeline begin (`program/entries.py`).
"""
