"""Stretto: a graph compiler for parallel execution plans."""

__version__ = "0.1.0"
