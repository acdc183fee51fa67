"""States: buffers that stay with the ranks, of which a program changes its part in place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...diagnostics import StrettoError
from ...dsl import globs
from ...dsl.spelling import listed
from ...ir.module import Module, argument_records, result_records, set_argument_records, set_result_records
from ...runtime.program.program import Program


def mark_states(module: Module, patterns: Sequence[str], *, elsewhere: bool = False) -> tuple[str, ...]:
    """Mark the buffers that a pattern names as states; their names.

    Raises StrettoError E0424 for a pattern that names none, but where it may name some `elsewhere`.
    """
    if not patterns:
        return ()
    main = module.functions()["main"]
    arguments, results = argument_records(main), result_records(main)
    buffers = [str(record["name"]) for record in arguments if record.get("kind") == "buffer"]
    if not elsewhere:
        _refuse_unused(patterns, buffers)
    states = {name for name in buffers if any(globs.matches(pattern, name) for pattern in patterns)}

    def marked(records: Sequence[dict[str, object]]) -> list[dict[str, object]]:
        return [
            {**record, "state": True} if record.get("kind") == "buffer" and record.get("name") in states else record
            for record in records
        ]

    set_argument_records(main, marked(arguments))
    set_result_records(main, marked(results))
    return tuple(name for name in buffers if name in states)


def refuse_unused_states(patterns: Sequence[str], programs: Iterable[Program]) -> None:
    """Raise StrettoError E0424 for a pattern that names no buffer of any of the programs."""
    if patterns:
        buffers = (each.name for program in programs for each in program.inputs if each.kind in ("buffer", "state"))
        _refuse_unused(patterns, [*dict.fromkeys(buffers)])


def _refuse_unused(patterns: Sequence[str], buffers: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(globs.matches(pattern, name) for name in buffers):
            near = [f'"{text}"' for text in globs.nearest_patterns(pattern, buffers)]
            raise StrettoError(
                "E0424",
                f'states names "{pattern}", but the forward uses no such buffer',
                expected=listed([f'"{name}"' for name in buffers]) if buffers else "a model with buffers",
                help=f"did you mean {listed(near)}?" if near else "register the tensor with register_buffer",
            )
