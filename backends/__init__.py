"""Lowering of the final IR to programs, one folder per target, and the interpreter and the simulator of programs.

Not here: the program's format and its execution (`runtime/`). Start reading at `program/lower_program.py`,
then `interpreter/running.py`.
"""
