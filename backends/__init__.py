"""Lowering of the final IR to programs, one folder per target.

Not here: the program's format and its execution (`runtime/`). Start reading at `program/lower_program.py`.
"""
