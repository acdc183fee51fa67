"""The dtypes in which each line of a model multiplies: in eager PyTorch, and in the program.

A product in bfloat16 where the model has float32 rounds no more than a check of a program with bfloat16 accepts, so
types are compared and not numbers: matrix products, convolutions and attention of the forward, by line and result
dtype. Passes rewrite these ops and keep their lines and dtypes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...runtime.checks.report import OP_DTYPES, CheckRow, Verdict

_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "mv", "addmv", "dot"})

Line = tuple[str, int, str]
"""A file, a line, and the kind of op."""
Found = Mapping[Line, frozenset[torch.dtype]]


class OpDtypes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Inside, the dtypes of products are recorded by the line of the model that asks for them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[Line, frozenset[torch.dtype]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        kind = _kind(func._schema.name.removeprefix("aten::"))
        if kind:
            first = result if isinstance(result, Tensor) else result[0]
            file, line = _users_line()
            known = self.found.get((file, line, kind), frozenset())
            self.found[file, line, kind] = known | {first.dtype}
        return result


def dtype_rows(eager: Found, ir: str) -> list[CheckRow]:
    """A row for each line whose ops have other dtypes in a program's module, given as text, than in eager PyTorch."""
    program = _of_module(ir)
    rows = []
    for (file, line, kind), dtypes in sorted(eager.items()):
        own = program.get((file, line, kind), dtypes)
        if file and own != dtypes:
            note = f"the program computes {kind} in {_listed(own)}, and eager PyTorch in {_listed(dtypes)}"
            rows.append(CheckRow(OP_DTYPES, f"{file}:{line}", math.inf, Verdict.DIFFERS, note))
    return rows


def _of_module(ir: str) -> dict[Line, frozenset[torch.dtype]]:
    from ...ir.interpreter.code import decode
    from ...ir.kinds import kind_of
    from ...ir.module import Module

    module = Module.parse(ir)
    idioms = {name: stated.name for name, each in module.functions().items() if (stated := kind_of(each)) is not None}
    found: dict[Line, frozenset[torch.dtype]] = {}
    for body in decode(module).bodies.values():
        for step in body.steps if body.name not in idioms else ():
            namespace, _, name = step.name.partition(".")
            kind = _kind(name.partition(".")[0]) if namespace == "aten" else idioms.get(step.callee, "")
            type_ = body.types[step.out[0]] if step.out else None
            if kind and type_ is not None and not step.origin.backward:
                key = step.origin.file, step.origin.line, kind
                found[key] = found.get(key, frozenset()) | {type_.dtype}
    return found


def _kind(name: str) -> str:
    """The kind of an op by its base name; empty for one that is not compared."""
    if name in _PRODUCTS:
        return "matrix products"
    if name == "convolution":
        return "convolutions"
    return "attention" if name.startswith("_scaled_dot_product") else ""


def _users_line() -> tuple[str, int]:
    """The innermost line of the model that is being called; ("", 0) if there is none."""
    return next(_users_lines(), ("", 0))


def _users_lines() -> Iterator[tuple[str, int]]:
    from ...frontend.metadata import is_users_file

    frame = sys._getframe(1)
    while frame is not None and frame.f_back is not None:
        if is_users_file(frame.f_code.co_filename):
            yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def _listed(dtypes: frozenset[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
