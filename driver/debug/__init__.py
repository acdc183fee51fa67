"""Run and debug passes on the text of a module: `opt`, `bisect`, `reduce`.

Start reading at `opt.py`. `bisect.py` finds the pass that breaks a module and asks for the operation: `faulty_op.py`
chooses it among the suspects of `fault_localisation.py`; `faulty_mean.py` does under `per microbatch`, `lowered_op.py`
in lowering. `reduce.py` finds the smallest module that still fails.
"""
