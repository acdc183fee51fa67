"""Run and debug passes on the text of a module: `opt`, `bisect`, `reduce`.

Start reading at `opt.py`; `bisect.py` finds the pass that breaks a module, `fault_localisation.py` the operation,
`reduce.py` the smallest module that still fails.
"""
