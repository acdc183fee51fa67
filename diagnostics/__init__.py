"""Errors that users see: their codes, their places in files, and how they are shown.

Everything may import this folder; it imports nothing of Stretto. Start reading at `error.py`.
"""

from .error import PlanWarning, Span, StrettoError, rendered

__all__ = ["PlanWarning", "Span", "StrettoError", "rendered"]
