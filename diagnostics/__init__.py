"""Errors and warnings that users see: code, position in a file, and rendering.

Everything may import this folder; it imports nothing of Stretto. Start reading at `error.py`.
"""

from .error import PlanWarning, Span, StrettoError, rendered
from .printable import printable

__all__ = ["PlanWarning", "Span", "StrettoError", "printable", "rendered"]
