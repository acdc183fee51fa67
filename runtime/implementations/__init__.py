"""Implementations of kinds: what may run in place of a function's body, by kind and target.

Lives here: the table of implementations (`registry.py`, start there), the choice of one for each function of a program
(`binding.py`), and those that come with the runtime. Not here: what a kind computes, which the body of its function
says, and implementations that need a compiler.
"""
