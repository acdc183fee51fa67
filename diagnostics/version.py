"""The version of Stretto, as programs, errors and `stretto --version` state it."""

__version__ = "0.1.0"
