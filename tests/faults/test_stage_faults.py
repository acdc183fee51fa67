"""Every single mistake in what stages do, send or receive is found by running them, whichever it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from stretto.ir.equivalence import compare
from stretto.ir.interpreter import InterpreterError
from stretto.ir.module import Module

from ..ir.interpreter.staged import FIRST, PART, SECOND, SEGMENTS, captured, in_order, in_segments

OWN = '{axes = ["dp", "microbatch"], dim = 0 : i64, chunk = 2 : i64, extent = 7 : i64, fill = 0.0 : f64}'
MASKED = SEGMENTS.replace('%h = "aten.mm_default"', '%m = "aten.mm_default"').replace(
    "return %h :", f'%h = "comm.mask"(%m) {OWN} : ({PART}) -> {PART}\nreturn %h :'
)
"""Segments of which the first knows its microbatch: the last row of the batch is cleared."""


def sends(lines: list[str]) -> list[int]:
    """Where tensors are sent."""
    return [index for index, line in enumerate(lines) if "comm.send" in line]


def mistakes(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each way to get one line of an entry wrong."""
    for index in sends(lines):
        yield f"send {index} left out", lines[:index] + lines[index + 1 :]
        yield f"send {index} twice", lines[: index + 1] + lines[index:]
    for index, other in zip(sends(lines), sends(lines)[1:], strict=False):
        if lines[index].rpartition(":")[2] == lines[other].rpartition(":")[2]:
            yield f"send {other} of another microbatch", [*lines[:other], lines[index], *lines[other + 1 :]]
    for index, line in enumerate(lines):
        if "start = 0" in line:
            yield (
                f"slice {index} of another microbatch",
                edited(lines, index, ("start = 0", "start = 2"), ("end = 2", "end = 4")),
            )
        if "_0, %" in line and "add_tensor" in line:
            yield f"a sum at {index} of one microbatch twice", edited(lines, index, ("_1)", "_0)"))
        if 'reduce = "sum"' in line:
            yield f"a maximum at {index}", edited(lines, index, ('"sum"', '"max"'))
            yield f"no sum at {index} over the data axis", edited(lines, index, ('axes = ["dp"]', "axes = []"))
        if "@forward_0" in line and "microbatch = 0" in line:
            yield f"call {index} for another microbatch", edited(lines, index, ("microbatch = 0", "microbatch = 1"))
        if "@weight_gradient_1(%h0" in line:
            yield f"call {index} with another activation", edited(lines, index, ("%gy0", "%y0"))


def edited(lines: list[str], index: int, *changes: tuple[str, str]) -> list[str]:
    line = lines[index]
    for old, new in changes:
        assert old in line
        line = line.replace(old, new)
    return [*lines[:index], line, *lines[index + 1 :]]


CASES = {
    **{f"stage 0: {name}": (lines, SECOND) for name, lines in mistakes(FIRST)},
    **{f"stage 1: {name}": (FIRST, lines) for name, lines in mistakes(SECOND)},
}


def test_there_are_mistakes_of_every_kind() -> None:
    assert len(CASES) > 20


@pytest.mark.parametrize("case", CASES)
def test_one_mistake_is_found(case: str) -> None:
    first, second = CASES[case]
    try:
        verdict = compare(in_segments(MASKED), in_order(first, second, MASKED))
    except InterpreterError as error:
        assert error.code in ("E0656", "E0657", "E0659", "E0663"), error
    else:
        assert not verdict.is_equal


def test_without_a_mistake_nothing_is_found() -> None:
    assert compare(in_segments(MASKED), in_order(FIRST, SECOND, MASKED)).is_equal
    assert compare(captured(), in_order()).is_equal and isinstance(in_order(), Module)
