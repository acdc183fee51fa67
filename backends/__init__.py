"""From the final IR to what runs or is simulated: lowering to a program, one file a target.

Not here: the program's format and its execution (`runtime/`). Start reading at `lower_program.py`.
"""
