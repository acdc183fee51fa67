"""The report on a pass's faulty operation: the first suspect (`fault_localisation.py`), or what changed its operands.

Runs the module before and after the pass, traces the suspect back to what changed its operands, and describes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...diagnostics import StrettoError
from ...ir.bindings import mlir
from ...ir.equivalence import random_inputs
from ...ir.equivalence.dtype_contract import DtypeProblem
from ...ir.equivalence.flow import Node
from ...ir.equivalence.integer_ranges import IntegerRange
from ...ir.equivalence.random_inputs import infer_ranges
from ...ir.equivalence.subvalues import Subvalues
from ...ir.equivalence.trace import Trace
from ...ir.interpreter import Floats, run
from ...ir.interpreter.ranks import result_name
from ...ir.locations import from_location
from ...ir.module import Module, operations
from ...ir.verifier import problems
from ...runtime.program.arguments import Json
from ..check.pass_check import CheckOptions
from .fault_localisation import Status, Statuses, Suspects, idle_before, suspects
from .known_values import Values
from .op_places import Place, Places
from .traced_module import TracedModule, same_origin

_MOST_CANDIDATES = 16
"""The most other candidates that are reported."""


@dataclass(frozen=True)
class Operand:
    """An operand of the faulty operation."""

    type: str
    made_by: str
    """The operation or the argument that it comes from."""
    status: Status

    def __str__(self) -> str:
        return f"{self.type} of {self.made_by}: {self.status}"


@dataclass(frozen=True)
class FaultyOp:
    """The first operation that breaks a module, or that is most likely to."""

    place: Place
    operands: tuple[Operand, ...] = ()
    results: tuple[str, ...] = ()
    """Their types."""
    why: tuple[str, ...] = ()
    """The evidence, a sentence each."""
    others: tuple[Place, ...] = ()
    """Other operations that may be the faulty one."""
    lost: Place | None = None
    """The first operation whose value the module after the pass lacks; None where `why` suffices."""

    def to_json(self) -> dict[str, Json]:
        operands: Json = [{"type": o.type, "made_by": o.made_by, "status": str(o.status)} for o in self.operands]
        return {
            **self.place.to_json(),
            "operands": operands, "results": list(self.results), "why": list(self.why),
            "others": [place.to_json() for place in self.others], "lost": self.lost.to_json() if self.lost else None,
        }  # fmt: skip


def find_faulty_op(
    before: Module, after: Module, options: CheckOptions, ranges: Mapping[str, IntegerRange], wrong: Sequence[int]
) -> FaultyOp | None:
    """Run both modules and find the faulty operation of the module after; None where that module cannot be run.

    `wrong` are the numbers of the results that differ; empty where they are not known.
    """
    inputs = random_inputs(before, options.seed, {**infer_ranges(before, after), **ranges}, regime=options.regime)
    traced = [TracedModule(module, inputs) for module in (before, after)]
    cap = options.memory_cap_bytes
    with Subvalues(traced[0].trace.keep_subvalue):
        run(before, inputs, floats=Floats.FLOAT64, max_bytes=cap, observer=traced[0].trace)
    known = Values(traced[0].trace, options.tolerance)
    traced[1].trace.knows = known.knows
    try:
        run(after, inputs, floats=Floats.FLOAT64, max_bytes=cap, observer=traced[1].trace)
    except StrettoError:
        if not traced[1].is_complete:
            return _wrong_before_stop(traced[1], known) or stopped_at(traced[1])
    return _compared(traced[0], traced[1], known, options.tolerance, wrong)


def invalid_op(module: Module) -> FaultyOp | None:
    """The first operation that Stretto's verifier refuses; None where MLIR's verifier does, whose message names it."""
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
    return FaultyOp(place, why=(problem.message,))


def op_with_dtypes(module: Module, problem: DtypeProblem) -> FaultyOp:
    """The operation that computes in other dtypes than before the pass, or than the plan says."""
    return FaultyOp(Places(module).place(problem.function, problem.step), why=(problem.message,))


def _wrong_before_stop(side: TracedModule, known: Values) -> FaultyOp | None:
    """Of a run that stopped: the first operation with a wrong value that the last one depends on."""
    if side.trace.last is None:
        return None
    last = side.trace.last
    statuses = Statuses(side.trace, known, frozenset(last.operands))
    found = suspects(statuses)
    first = idle_before(statuses, last) or found.first
    if first is None or (first is found.first and not any(statuses.by_value[n] is Status.WRONG for n in first.results)):
        return None
    why = (f"the run stops at {side.place(last)}, which depends on it",)
    return report_on(side, statuses, Suspects(first, found.others), why, None)


def stopped_at(side: TracedModule) -> FaultyOp | None:
    """The operation at which a run stopped."""
    node = side.trace.last
    if node is None:
        return None
    operands = tuple(_operand(side, number, Status.UNKNOWN) for number in node.operands)
    return FaultyOp(side.place(node), operands, side.result_types(node), ("the run stops here",))


def _operand(side: TracedModule, number: int, status: Status) -> Operand:
    return Operand(side.type_text(number), side.maker_text(number), status)


def report_on(
    side: TracedModule, statuses: Statuses, suspected: Suspects, why: tuple[str, ...], lost: Place | None
) -> FaultyOp:
    """The report on what `suspects` found."""
    first = suspected.first
    if first is None:
        return FaultyOp(side.places.place_of_return(side.code.entries[0].name), why=why, lost=lost)
    operands = tuple(_operand(side, number, statuses.by_value[number]) for number in statuses.operands(first))
    others = tuple(dict.fromkeys(side.place(node) for node in suspected.others))[:_MOST_CANDIDATES]
    return FaultyOp(side.place(first), operands, side.result_types(first), why, others, lost)


def _compared(
    before: TracedModule, after: TracedModule, known: Values, tolerance: float, wrong: Sequence[int]
) -> FaultyOp:
    results = [side.trace.flow.results for side in (before, after)]
    pairs = enumerate(zip(*results, strict=True))
    numbers = list(wrong) or [i for i, (a, b) in pairs if _differ(before.trace, a, after.trace, b, tolerance)]
    statuses = Statuses(after.trace, known, frozenset(results[1][i] for i in numbers))
    found = Values(after.trace, tolerance)
    missing = Statuses(before.trace, found, frozenset(results[0][i] for i in numbers))
    suspected, gone = _trace_back(before, after, suspects(statuses), numbers, tolerance), suspects(missing)
    if suspected.first is not None and _is_altered(before, after, suspected.first, tolerance):
        suspected, gone = Suspects(suspected.first), Suspects(None)
    lost = None if gone.first is None else before.place(gone.first)
    return report_on(after, statuses, suspected, tuple(_why(before, after, suspected, numbers, tolerance)), lost)


def _trace_back(
    before: TracedModule, after: TracedModule, suspected: Suspects, wrong: Sequence[int], tolerance: float
) -> Suspects:
    """Follow operands that changed back to the operation that changed them: one that only reads them is not faulty."""
    pairs = (
        [(before.trace.flow.results[i], after.trace.flow.results[i]) for i in wrong] if suspected.first is None else []
    )
    node = suspected.first
    while True:
        if node is not None:
            counterpart = before.counterpart(after, node)
            pairs = [] if counterpart is None else list(zip(counterpart.operands, node.operands, strict=False))
        changed = next(_changed(before, after, pairs, tolerance), None)
        if changed is None:
            return Suspects(node, suspected.others) if node is not None else suspected
        node = changed


def _changed(
    before: TracedModule, after: TracedModule, pairs: Sequence[tuple[int, int]], tolerance: float
) -> Iterator[Node]:
    """Of pairs of values, before and after: the makers of those that differ though one operation stands for both.

    The same operation made both, or the new one is of what the pass wrote in place of the old one.
    """
    for old, new in pairs:
        old_maker, new_maker = before.maker(old), after.maker(new)
        if old_maker is None or new_maker is None:
            continue
        is_rewritten = same_origin(old_maker, new_maker) and not before.has_like(new_maker)
        if before.counterpart(after, new_maker) is not old_maker and not is_rewritten:
            continue
        if old not in before.trace.fingerprints:
            old, new = before.results_through_wait(old_maker)[0], after.results_through_wait(new_maker)[0]
        if _differ(before.trace, old, after.trace, new, tolerance, new_maker.microbatch):
            yield new_maker


def _differ(before: Trace, old: int, after: Trace, new: int, tolerance: float, microbatch: int | None = None) -> bool:
    """Whether two values are known to differ; `microbatch` is the one that the operation reads the new value for."""
    return before.agrees(old, after, new, tolerance, microbatch) is False


def _is_altered(before: TracedModule, after: TracedModule, node: Node, tolerance: float) -> bool:
    """Whether the operation existed before with the same operands and differs only in its constants."""
    counterpart = before.counterpart(after, node)
    if counterpart is None or len(counterpart.operands) != len(node.operands):
        return False
    pairs = zip(counterpart.operands, node.operands, strict=True)
    return counterpart.constants != node.constants and not any(
        _differ(before.trace, old, after.trace, new, tolerance, node.microbatch) for old, new in pairs
    )


def _why(
    before: TracedModule, after: TracedModule, suspected: Suspects, wrong: Sequence[int], tolerance: float
) -> Iterator[str]:
    """The evidence that the operation is faulty."""
    node = suspected.first
    if node is None:
        names = ", ".join(f'"{result_name(after.code.results[i].record, i)}"' for i in wrong)
        yield f"every value that {names} depends on is right, but it is returned in place of another"
        return
    if any(number in after.trace.diverged for number in after.results_through_wait(node)):
        yield "its type says that ranks hold the same values of the result, but they differ"
    counterpart = before.counterpart(after, node)
    if counterpart is None:
        yield "the module before the pass has no such operation for this line"
        return
    for name, value in node.constants.items():
        if counterpart.constants.get(name) != value:
            yield f"{name} is {_value_text(value)}, and was {_value_text(counterpart.constants.get(name))}"
    yield from _other_operands(before, after, counterpart, node, tolerance)


def _other_operands(
    before: TracedModule, after: TracedModule, counterpart: Node, node: Node, tolerance: float
) -> Iterator[str]:
    for index, (old, new) in enumerate(zip(counterpart.operands, node.operands, strict=False)):
        if _differ(before.trace, old, after.trace, new, tolerance, node.microbatch):
            yield f"operand {index} is of {after.maker_text(new)}, and was of {before.maker_text(old)}"
        elif before.code.level is after.code.level and before.type_text(old) != after.type_text(new):
            yield f"operand {index} is a {after.type_text(new)}, and was a {before.type_text(old)}"
    if len(counterpart.operands) != len(node.operands):
        yield f"it has {len(node.operands)} operands, and had {len(counterpart.operands)}"


def _value_text(value: object) -> str:
    return "not given" if value is None else str(value)
