"""Checks of passes and programs: `verify`, `run --check`, and the eager model that they compare with.

Start reading at `pass_check.py` (one pass) and `run_program.py` (a program). The eager side has rules of its own:
`users_call.py` calls the model, `eager_model.py` gives it a program's values and random numbers, `second_load.py` knows
its modes, `first_weights.py` its weights, `op_dtypes.py` the dtypes of its products. Where a fault is: `driver/debug/`,
which imports this room.
"""
