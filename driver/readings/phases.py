"""What readings ask of a program: what belongs to its forward, what a slot is a view of, how much a rank has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...runtime.program.program import Program
from ...runtime.program.records import Function, Input, Instruction


def forward_code(program: Program) -> Iterator[tuple[str, Sequence[Instruction]]]:
    """By name of a function: the part of `main` before its backward, and the functions that it calls.

    Of a pipeline: all functions.
    """
    if program.pipeline is not None:
        yield from ((name, function.code) for name, function in program.functions.items())
        return
    main = program.functions["main"]
    yield from _with_called(program, "main", main.code[: main.backward_at])


def backward_code(program: Program) -> Iterator[tuple[str, Sequence[Instruction]]]:
    """The same of the backward; nothing without one, and of a pipeline."""
    main = program.functions.get("main")
    if program.pipeline is None and main is not None and main.backward_at is not None:
        yield from _with_called(program, "main", main.code[main.backward_at :])


def _with_called(
    program: Program, name: str, code: Sequence[Instruction]
) -> Iterator[tuple[str, Sequence[Instruction]]]:
    yield name, code
    for called in dict.fromkeys(str(step.args[0]) for step in code if step.op == "call"):
        yield from _with_called(program, called, program.functions[called].code)


def viewed(function: Function, slot: int) -> int:
    """The slot whose memory a slot is a view of, or the slot itself."""
    views = dict(function.views)
    while slot in views:
        slot = views[slot]
    return slot


def local_extent(tensor: Input, dim: int) -> int:
    """How much of a dim of an input a rank has."""
    return next((shard.chunk for shard in tensor.shards if shard.dim == dim), tensor.shape[dim])


def axes_of(step: Instruction) -> tuple[str, ...]:
    """The axes of a collective."""
    value = step.kwargs.get("axes")
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()


def kind_of(program: Program, step: Instruction) -> str:
    """The kind that the function which a step calls says of itself; empty where it says none, or nothing is called."""
    function = program.functions.get(str(step.args[0])) if step.op == "call" else None
    return function.kind.name if function is not None and function.kind is not None else ""


def is_attention(program: Program, step: Instruction) -> bool:
    """Whether a step is attention by softmax or its gradient: torch's own, or a function that says so."""
    return "scaled_dot_product" in step.op or kind_of(program, step).startswith("attention")
