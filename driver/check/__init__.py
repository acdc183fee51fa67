"""Checks of passes and programs: `verify`, `run --check`, and the eager model that they compare with.

Start reading at `pass_check.py` (one pass) and `run_program.py` (a program). Where a fault is: `driver/debug/`,
which imports this room.
"""
