"""Tiny programs for the prover, written by hand: safe ones, and the parts from which unsafe ones are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stretto.runtime.program.arguments import Slot, Value
from stretto.runtime.program.program import Manifest, Program
from stretto.runtime.program.records import Function, Input, Instruction, Location, Output, Pipeline

S = Slot
PAIR = (("tp", 2),)
SQUARE = (("dp", 2), ("tp", 2))
PLACES = (Location("model.py", 7, "embed"), Location("model.py", 31, "model.layers.*.mlp"), Location("model.py", 40))


def step(
    op: str, *args: Value, out: Sequence[int | None] = (), free: Sequence[int] = (), loc: int | None = None, **kw: Value
) -> Instruction:
    """One instruction."""
    return Instruction(op, args, kw, tuple(out), tuple(free), loc)


def reduce(slot: int, out: int | None, axes: str = "tp", free: Sequence[int] = (), **kw: Value) -> Instruction:
    """Start an all-reduce of a slot over axes such as "dp tp"."""
    kw = {"reduce": "sum", **kw}
    return step("comm.all_reduce_start", S(slot), axes=axes.split(), out=[out], free=free, loc=1, **kw)


def wait(slot: int, out: int | None, free: Sequence[int] | None = None) -> Instruction:
    """Wait for a future, and free its slot."""
    return step("comm.wait", S(slot), out=[out], free=[slot] if free is None else free, loc=2)


def relu(slot: int, out: int, free: Sequence[int] = ()) -> Instruction:
    """Any op from one slot to another."""
    return step("aten.relu.default", S(slot), out=[out], free=free, loc=0)


def program(
    *code: Instruction, result: int, mesh: tuple[tuple[str, int], ...] = PAIR, shape: tuple[int, ...] = (4, 4),
    functions: dict[str, Function] | None = None,
) -> Program:  # fmt: skip
    """Instructions on one float32 input in slot 0, with one result."""
    main = Function(1 + max(slots(code)), (0,), (result,), code)
    inputs = (Input("x", "input", shape, "float32", 0, index=0),)
    outputs = (Output("y", "output", shape, "float32", result, index=0),)
    bodies = {"main": main, **(functions or {})}
    return Program(Manifest("infer", "float32", mesh), inputs, outputs, bodies, PLACES)


def slots(code: Sequence[Instruction]) -> list[int]:
    """All slots that appear in instructions."""
    return [
        0,
        *(slot for instruction in code for slot in (*instruction.reads(), *instruction.writes(), *instruction.free)),
    ]


def with_code(before: Program, *code: Instruction) -> Program:
    """The same program with another main."""
    main = replace(before.functions["main"], code=code, slots=1 + max(slots(code)))
    return replace(before, functions={**before.functions, "main": main})


def layered(layers: int, rank: int = 0, mesh: tuple[tuple[str, int], ...] = PAIR, width: int = 8) -> Program:
    """A folded body called `layers` times: two matmuls, each followed by a collective that something hides.

    The body of every `rank` differs from the others' in a number, as those of pipeline stages would.
    """
    body: list[Instruction] = [step("aten.mul.Scalar", S(0), 1.0 + rank, out=[2], loc=1)]
    for slot in range(2, 42, 5):
        body += [
            step("aten.mm.default", S(slot), S(1), out=[slot + 1], loc=1),
            reduce(slot + 1, slot + 2, "tp", free=[slot + 1]),
            step("aten.relu.default", S(slot), out=[slot + 3], free=[slot], loc=1),
            wait(slot + 2, slot + 4),
            step("aten.add.Tensor", S(slot + 4), S(slot + 3), out=[slot + 5], free=[slot + 4, slot + 3], loc=1),
        ]
    layer = Function(50, (0, 1), (42,), tuple(body))
    calls = [
        step(
            "call",
            "layers_forward",
            [S(2 * layer), S(1)],
            out=[2 * layer + 2],
            free=[2 * layer] if layer else [],
            loc=1,
        )
        for layer in range(layers)
    ]
    base = program(
        relu(0, 1), *calls, result=2 * layers, mesh=mesh, shape=(width, width), functions={"layers_forward": layer}
    )
    return replace(
        base,
        functions={**base.functions, "main": replace(base.functions["main"], slots=2 * layers + 3)},
    )


def crossed(*, waits_first: bool = False) -> Program:
    """Two stages of two ranks that start sums of two groups in opposite orders, each over both stages.

    One launch order over all groups deadlocks; one for each group does not, unless the first wait comes before the
    second start.
    """
    entries = {}
    for name, axes in (("main_0", ("pp", "pp dp")), ("main_1", ("pp dp", "pp"))):
        starts = [reduce(0, 1 + i, each) for i, each in enumerate(axes)]
        waits = [wait(1, 3), wait(2, 4)]
        code = [starts[0], waits[0], starts[1], waits[1]] if waits_first else [*starts, *waits]
        total = step("aten.add.Tensor", S(3), S(4), out=[5], loc=0)
        entries[name] = Function(6, (0,), (5,), (*code, total))
    inputs = (Input("x", "input", (4, 4), "float32", 0, index=0),)
    outputs = (Output("y", "output", (4, 4), "float32", 0, index=0),)
    mesh = (("pp", 2), ("dp", 2))
    pipeline = Pipeline("pp", tuple(entries), 1)
    return Program(Manifest("infer", "float32", mesh), inputs, outputs, entries, PLACES, pipeline=pipeline)
