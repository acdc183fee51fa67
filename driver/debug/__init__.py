"""Run and debug passes on the text of a module: `opt`, `bisect`, `reduce`.

Start reading at `opt.py`. `bisect.py` finds the pass that breaks a module and asks for the operation: `suspects()` in
`fault_localisation.py` picks the first wrong one, `faulty_op.py` traces that back to what changed its operands and
reports it. `faulty_mean.py` does so under `per microbatch`, `lowered_op.py` in lowering. `reduce.py` finds the smallest
module that still fails.
"""
