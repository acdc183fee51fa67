"""Lower a module of level `comm` to a program: instruction lists.

Start reading at `lower_program.py`; `fit_sizes.py` finds the numbers of a program that depend on named sizes.
"""
