"""The summary of a module, for `stretto diff`; `summary.py` makes that of a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from math import prod

from ...costs.communication import ring_bytes
from ...ir.collectives import SEND, Collective, collective
from ...ir.interpreter import estimate
from ...ir.interpreter.code import Body, Code, Step, decode, used
from ...ir.kinds import kind_of
from ...ir.module import Level, Module
from ...ir.placement import axes_size
from ...ir.source_text import read_module
from ...ir.types import TensorType
from ..ir_files.module_source import Source
from .summary import Communication, Summary
from .traffic import SEND as MESSAGE


def module_summary(source: Source) -> Summary:
    """The summary of one step of a module. Errors: E0504 to E0506, E0652 for an operation that is not Stretto's."""
    read_module(source.text, source.name)
    module = Module.parse(source.text)  # without file locations, which differ between equal files
    code = decode(module)
    idioms = {name: stated.name for name, each in module.functions().items() if (stated := kind_of(each)) is not None}
    peak = estimate(module).rank_bytes
    summary = Summary(source.name, module.text(locations=False), peak_bytes=peak, stages=len(code.entries))
    for name, times in _call_counts(code, idioms).items():
        for step in code.bodies[name].steps:
            if step.callee and step.callee not in idioms:
                continue
            summary.ops[idioms.get(step.callee, step.name)] += times
            summary.places[step.origin.file, step.origin.line, step.origin.module_path] += times
            known = collective(step.name) if code.level is Level.COMM else None
            if known is not None:
                _add_collective(summary, code, code.bodies[name], step, known, times)
            elif step.name == SEND:
                size = _bytes(code.bodies[name].types[used(step)[0]])
                summary.communication.setdefault((MESSAGE, (step.args[1],)), Communication()).add(times, size, size)
    return summary


def _add_collective(summary: Summary, code: Code, body: Body, step: Step, known: Collective, times: int) -> None:
    axes = tuple(step.args[1])
    ranks = axes_size(code.mesh, axes)
    slots = used(step)[:1] if known.counts else used(step)
    operands = [type_ for slot in slots if (type_ := body.types[slot]) is not None]
    shapes = known.result_shapes([type_.shape for type_ in operands], step.args[1:], ranks)
    taken = sum(_bytes(type_) for type_ in operands)
    given = sum(
        prod(shape) * type_.dtype.itemsize for type_, shape in zip(operands, shapes, strict=True) if shape is not None
    )
    size = min(taken, given) if known.counts else max(taken, given)
    link = summary.communication.setdefault((known.kind, axes), Communication())
    link.add(times, size, ring_bytes(known.kind, size, ranks))


def _bytes(type_: TensorType | None) -> int:
    return 0 if type_ is None else prod(type_.shape) * type_.dtype.itemsize


def _call_counts(code: Code, idioms: Container[str]) -> Counter[str]:
    """How often each function runs in a step, those aside that count as one operation."""
    counts: Counter[str] = Counter()

    def enter(name: str, times: int) -> None:
        counts[name] += times
        called = Counter(step.callee for step in code.bodies[name].steps if step.callee)
        for callee, calls in called.items():
            if callee not in idioms:
                enter(callee, times * calls)

    for entry in code.entries:
        enter(entry.name, 1)
    return counts
