"""The operation with which a broken module goes wrong, told to a person: where it stands, and what shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...diagnostics import StrettoError
from ...ir.bindings import mlir
from ...ir.equivalence import random_inputs
from ...ir.equivalence.flow import Node
from ...ir.equivalence.integer_ranges import IntegerRange
from ...ir.equivalence.random_inputs import infer_ranges
from ...ir.equivalence.trace import Trace
from ...ir.interpreter import Floats, run
from ...ir.interpreter.ranks import result_name
from ...ir.locations import from_location
from ...ir.module import Module, operations
from ...ir.verifier import problems
from ...runtime.program.arguments import Json
from ..check.pass_check import Terms
from .fault_localisation import Status, Statuses, Suspects, Values, suspects
from .op_places import Place
from .traced_module import TracedModule

_OTHERS = 16
"""So many other candidates are told."""


@dataclass(frozen=True)
class Operand:
    """What the guilty operation reads."""

    type: str
    made_by: str
    """The operation or the argument that it is a result of."""
    status: Status

    def __str__(self) -> str:
        return f"{self.type} of {self.made_by}: {self.status}"


@dataclass(frozen=True)
class GuiltyOp:
    """The first operation that breaks a module, or that is most likely to."""

    place: Place
    operands: tuple[Operand, ...] = ()
    results: tuple[str, ...] = ()
    """Their types."""
    why: tuple[str, ...] = ()
    """What shows it, a sentence each."""
    others: tuple[Place, ...] = ()
    """Operations that may be guilty in its stead; empty where it alone can be."""
    lost: Place | None = None
    """The first operation of the module before whose value is nowhere after; None where `why` says all."""

    def to_json(self) -> dict[str, Json]:
        operands: Json = [{"type": o.type, "made_by": o.made_by, "status": str(o.status)} for o in self.operands]
        return {
            **self.place.to_json(),
            "operands": operands, "results": list(self.results), "why": list(self.why),
            "others": [each.to_json() for each in self.others], "lost": self.lost.to_json() if self.lost else None,
        }  # fmt: skip


def find_guilty_op(
    before: Module, after: Module, terms: Terms, ranges: Mapping[str, IntegerRange], wrong: Sequence[int]
) -> GuiltyOp | None:
    """Run both modules, and name the operation with which the one after goes wrong; None where it cannot be run at all.

    `wrong` are the numbers of its results that differ; empty where they cannot be had.
    """
    inputs = random_inputs(before, terms.seed, {**infer_ranges(before, after), **ranges})
    sides = [TracedModule(module, inputs) for module in (before, after)]
    cap = terms.memory_cap_bytes
    run(before, inputs, floats=Floats.FLOAT64, max_bytes=cap, observer=sides[0].trace)
    try:
        run(after, inputs, floats=Floats.FLOAT64, max_bytes=cap, observer=sides[1].trace)
    except StrettoError:
        if not sides[1].is_complete:
            return _stopped(sides[1])
    return _compared(sides[0], sides[1], terms.tolerance, wrong)


def invalid_op(module: Module) -> GuiltyOp | None:
    """The first operation that the verifier refuses; None where MLIR's own does, which names it in its message."""
    try:
        module.verify()
        problem = next(problems(module), None)
    except mlir.MLIRError:
        return None
    if problem is None:
        return None
    functions = module.functions().items()
    inside = [name for name, function in functions if any(op == problem.op for op in operations(function))]
    place = Place(problem.op.operation.name, inside[0] if inside else "", from_location(problem.op.location))
    return GuiltyOp(place, why=(problem.message,))


def _stopped(side: TracedModule) -> GuiltyOp | None:
    """The operation at which a run ended."""
    node = side.trace.last
    if node is None:
        return None
    operands = tuple(_operand(side, number, Status.UNKNOWN) for number in node.operands)
    return GuiltyOp(side.place(node), operands, side.result_types(node), ("the run stops here",))


def _operand(side: TracedModule, number: int, status: Status) -> Operand:
    return Operand(side.type_text(number), side.maker_text(number), status)


def _guilty(
    side: TracedModule, statuses: Statuses, found: Suspects, why: tuple[str, ...], lost: Place | None
) -> GuiltyOp:
    """What `suspects` found, told."""
    first = found.first
    if first is None:
        return GuiltyOp(side.places.returning(side.code.entries[0].name), why=why, lost=lost)
    operands = tuple(_operand(side, number, statuses.of[number]) for number in statuses.operands(first))
    others = tuple(dict.fromkeys(side.place(node) for node in found.others))[:_OTHERS]
    return GuiltyOp(side.place(first), operands, side.result_types(first), why, others, lost)


def _compared(before: TracedModule, after: TracedModule, tolerance: float, wrong: Sequence[int]) -> GuiltyOp:
    results = [side.trace.flow.results for side in (before, after)]
    pairs = enumerate(zip(*results, strict=True))
    numbers = list(wrong) or [i for i, (a, b) in pairs if _unlike(before.trace, a, after.trace, b, tolerance)]
    known = [Values(side.trace, tolerance) for side in (before, after)]
    statuses = Statuses(after.trace, known[0], frozenset(results[1][i] for i in numbers))
    missing = Statuses(before.trace, known[1], frozenset(results[0][i] for i in numbers))
    found, gone = _followed(before, after, suspects(statuses), numbers, tolerance), suspects(missing)
    if found.first is not None and _is_altered(before, after, found.first, tolerance):
        found, gone = Suspects(found.first), Suspects(None)
    lost = None if gone.first is None else before.place(gone.first)
    return _guilty(after, statuses, found, tuple(_why(before, after, found, numbers, tolerance)), lost)


def _followed(
    before: TracedModule, after: TracedModule, found: Suspects, wrong: Sequence[int], tolerance: float
) -> Suspects:
    """What reads another value than before may be right, where the operation that the value is from has changed."""
    pairs = [(before.trace.flow.results[i], after.trace.flow.results[i]) for i in wrong] if found.first is None else []
    node = found.first
    while True:
        if node is not None:
            twin = before.twin(after, node)
            pairs = [] if twin is None else list(zip(twin.operands, node.operands, strict=False))
        changed = next(_changed(before, after, pairs, tolerance), None)
        if changed is None:
            return Suspects(node, found.others) if node is not None else found
        node = changed


def _changed(
    before: TracedModule, after: TracedModule, pairs: Sequence[tuple[int, int]], tolerance: float
) -> Iterator[Node]:
    """Of values before and after: the makers of those that differ, though both are of the same operation."""
    for old, new in pairs:
        was, now = before.maker(old), after.maker(new)
        if was is None or now is None or before.twin(after, now) is not was:
            continue
        if old not in before.trace.fingerprints:
            old, new = before.given(was)[0], after.given(now)[0]
        if _unlike(before.trace, old, after.trace, new, tolerance, now.microbatch):
            yield now


def _unlike(before: Trace, old: int, after: Trace, new: int, tolerance: float, turn: int | None = None) -> bool:
    """Whether two values are known to differ; `turn` is the microbatch that an operation after reads the value for."""
    return before.agrees(old, after, new, tolerance, turn) is False


def _is_altered(before: TracedModule, after: TracedModule, node: Node, tolerance: float) -> bool:
    """Whether the operation was there before, read the same, and differs in its constants alone."""
    twin = before.twin(after, node)
    if twin is None or len(twin.operands) != len(node.operands):
        return False
    pairs = zip(twin.operands, node.operands, strict=True)
    return twin.constants != node.constants and not any(
        _unlike(before.trace, old, after.trace, new, tolerance, node.microbatch) for old, new in pairs
    )


def _why(
    before: TracedModule, after: TracedModule, found: Suspects, wrong: Sequence[int], tolerance: float
) -> Iterator[str]:
    """What shows that the operation is guilty."""
    node = found.first
    if node is None:
        names = ", ".join(f'"{result_name(after.code.results[i].record, i)}"' for i in wrong)
        yield f"every value that leads to {names} was computed before too, and is returned in the place of another"
        return
    if any(number in after.trace.diverged for number in after.given(node)):
        yield "ranks that should hold the same of its result, as its type says, do not"
    twin = before.twin(after, node)
    if twin is None:
        yield "the module before has no such operation for this line"
        return
    for name, value in node.constants.items():
        if twin.constants.get(name) != value:
            yield f"{name} is {_text(value)}, and was {_text(twin.constants.get(name))}"
    yield from _other_operands(before, after, twin, node, tolerance)


def _other_operands(
    before: TracedModule, after: TracedModule, twin: Node, node: Node, tolerance: float
) -> Iterator[str]:
    for at, (old, new) in enumerate(zip(twin.operands, node.operands, strict=False)):
        if _unlike(before.trace, old, after.trace, new, tolerance, node.microbatch):
            yield f"operand {at} is of {after.maker_text(new)}, and was of {before.maker_text(old)}"
        elif before.code.level is after.code.level and before.type_text(old) != after.type_text(new):
            yield f"operand {at} is a {after.type_text(new)}, and was a {before.type_text(old)}"
    if len(twin.operands) != len(node.operands):
        yield f"it has {len(node.operands)} operands, and had {len(twin.operands)}"


def _text(value: object) -> str:
    return "not given" if value is None else str(value)
