"""No search for garbage while a module is converted, rewritten and lowered.

Python searches all objects of the process, those of torch and of the captured graph included, whenever a quarter more
have been made: half a second for a model of 126 layers. What passes make and drop has hardly any cycles.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_search_for_garbage() -> Iterator[None]:
    """Python's search for garbage is off inside, and as it was behind."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
