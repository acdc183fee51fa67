"""Lowering to a program: a module of level `comm` becomes instruction lists.

Start reading at `lower_program.py`; `fit_sizes.py` finds which of a program's numbers follow from named sizes.
"""
