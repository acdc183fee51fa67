"""Rewrites and checks of the traced fx graph: regions, autocast, random ops, views by strides, complex numbers.

Start reading at `regions.py`; `checks.py` says what a graph may not contain.
"""
