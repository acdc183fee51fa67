"""The commands that check: `verify` of passes and programs, `run --check`, and the eager model that these compare with.

Start reading at `pass_check.py` (one pass) and `run_program.py` (a program). Where a fault is: `driver/debug/`,
which imports this room.
"""
