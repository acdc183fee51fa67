"""Faults of lowering: the program does not say what the module says."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

from .faults import LOWERING, SourceFault

LOWER = "backends.program.lower_program"
BODY = f"{LOWER}:_Body"


def _instruction(op: str, altered: Any) -> Any:
    """`_Body._instruction` that alters the instructions of one op."""

    def make(instruction: Any) -> Any:
        def faulty(self: Any, operation: Any) -> Any:
            made = instruction(self, operation)
            return altered(made) if made.op == op else made

        return faulty

    return make


def _other_keyword(name: str, change: Any) -> Any:
    return lambda made: replace(made, kwargs={**made.kwargs, name: change(made.kwargs[name])})


def _swapped(made: Any) -> Any:
    return replace(made, args=(made.args[1], made.args[0], *made.args[2:]))


def _frees_early(with_frees: Any) -> Any:
    def faulty(code: Any, *rest: Any) -> Any:
        made = with_frees(code, *rest)
        for index, (one, two) in enumerate(pairwise(made)):
            early = [slot for slot in two.free if slot in one.reads()]
            if early:
                made[index] = replace(one, free=tuple(sorted({*one.free, *early})))
                made[index + 1] = replace(two, free=tuple(slot for slot in two.free if slot not in early))
                break
        return made

    return faulty


def _rounded(argument: Any) -> Any:
    def faulty(self: Any, value: Any) -> Any:
        made = argument(self, value)
        return round(made, 1) if isinstance(made, float) else made

    return faulty


def _of(what: str, instruction: str, op: str, altered: Any, case: str = "tensor") -> SourceFault:
    """A fault of the instructions of one op, whose name in the module is `op`."""
    return SourceFault(what, f"{BODY}/_instruction", _instruction(instruction, altered), LOWERING, case=case, op=op)


def _positional_alone(arguments: Any) -> Any:
    def faulty(self: Any, call: Any) -> Any:
        args, kwargs = arguments(self, call)
        return args, kwargs if call.name.startswith("comm.") else {}

    return faulty


def _first_two_exchanged(made: Any) -> Any:
    callee, (first, second, *rest) = made.args
    return replace(made, args=(callee, [second, first, *rest]))


IN_LOWERING = (
    _of("operands of a difference are swapped", "aten.sub.Tensor", "aten.sub_tensor", _swapped),
    SourceFault("constants are rounded", f"{BODY}/_argument", _rounded, LOWERING),
    _of("a started reduction is a maximum", "comm.all_reduce_start", "comm.all_reduce_start",
        _other_keyword("reduce", lambda reduce: "max")),
    _of("a collective is over one axis of two", "comm.all_reduce_start", "comm.all_reduce_start",
        _other_keyword("axes", lambda axes: axes[:1]), "sequence"),
    _of("a gather is along another dim", "comm.all_gather_start", "comm.all_gather_start",
        _other_keyword("dim", lambda dim: 1 - dim if dim < 2 else 0), "sequence"),
    _of("a chunk begins one later", "rank.offset", "comm.offset", _other_keyword("chunk", lambda chunk: chunk + 1)),
    _of("a mask is wider", "rank.mask", "comm.mask", _other_keyword("extent", lambda extent: extent + 1)),
    _of("a mask fills with ones", "rank.mask", "comm.mask", _other_keyword("fill", lambda fill: 1.0)),
    SourceFault("a slot is freed before its last use", f"{LOWER}:with_frees", _frees_early, LOWERING),
    SourceFault("named arguments are lost", f"{BODY}/_arguments", _positional_alone, LOWERING),
    _of("two results are exchanged", "aten.native_layer_norm.default", "",
        lambda made: replace(made, out=(made.out[0], made.out[2], made.out[1]))),
    _of("a call's arguments are exchanged", "call", "func.call", _first_two_exchanged),
    _of("a message comes from another stage", "comm.receive_start", "comm.receive_start",
        _other_keyword("peer", lambda peer: 1 - peer), "pipeline"),
    _of("a quotient has twice the divisor", "aten.div.Scalar", "aten.div_scalar",
        lambda made: replace(made, args=(made.args[0], 2 * made.args[1]))),
    SourceFault("a chunk is rounded down", f"{LOWER}:chunk_size",
                lambda chunk: lambda extent, count: max(1, extent // count), LOWERING),
)  # fmt: skip
"""All faults of lowering."""
