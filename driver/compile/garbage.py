"""Python's garbage collector is off while a module is converted, rewritten and lowered.

A full collection visits all objects of the process, those of torch and of the captured graph included. It runs whenever
their number has grown by a quarter, which costs half a second for a model of 126 layers. Passes make hardly any cycles.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_search_for_garbage() -> Iterator[None]:
    """The garbage collector is off inside, and restored after."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
