"""Torch's meta kernels without torch._dynamo, which they import when they are first called: a second or more.

They import it to hide a function from tracing, and keep what it gives them on that function as `__dynamo_disable`.
Where nothing is traced, the function itself does as well. Should torch come to do this in another way, the import is
back and nothing else differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
import torch._compile
import torch._decomp
import torch._refs.nn.functional
import torch._refs.special

_KEPT_AS = "__dynamo_disable"


@contextmanager
def meta_kernels_without_dynamo() -> Iterator[None]:
    """Keep meta kernels from importing torch._dynamo. For commands: meanwhile nothing in the process may be traced."""
    hidden = [each for each in _hidden_functions() if not hasattr(each, _KEPT_AS)]
    for each in hidden:
        setattr(each, _KEPT_AS, each)
    try:
        yield
    finally:
        for each in hidden:
            delattr(each, _KEPT_AS)


def _hidden_functions() -> list[FunctionType]:
    """What `torch._disable_dynamo` wraps among torch's references and decompositions."""
    homes = (torch._refs, torch._refs.nn.functional, torch._refs.special, torch._decomp.decompositions)
    tables: list[Mapping[Any, object]] = [*map(vars, homes), *torch._decomp.global_decomposition_table.values()]
    found: list[FunctionType] = []
    seen: set[int] = set()
    left = [each for table in tables for each in table.values() if isinstance(each, FunctionType)]
    while left:
        function = left.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        inside = _wrapped_by(function)
        if function.__code__.co_filename == torch._compile.__file__:
            found += inside
        left += inside
    return found


def _wrapped_by(function: FunctionType) -> list[FunctionType]:
    """The functions that a decorated function calls: those that it closes over."""
    cells = [each.cell_contents for each in function.__closure__ or ()]
    return [each for each in cells if isinstance(each, FunctionType)]
