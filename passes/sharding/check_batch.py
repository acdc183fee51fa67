"""Check that what is cut as the batch is the batch: inputs by their ties to it, and results for `average-microbatches`.

Before                                                    After
  mesh (pp=2)
  main(%x: 8x6, %y: 8)       %y has the labels of %x        the same
  main(%x: 8x6, %t: 8x6)     no op ties a row of %t to %x   refused: E0405

An input that the plan does not name is the batch's if it has as many rows as the first input. Where that number alone
says so, and no op ties its rows to the batch's (`tied_dims.py`), cutting it may change the function: under a pipeline
it is refused, with the statement to add. Over ranks values stay the same, so it is a remark. For `per microbatch` the
pass notes which results have a row for each row of the batch, as `comm.batch_results`.

Needs: level `aten`, placements on main's arguments (`place-arguments`).   Keeps: values; it rewrites nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...diagnostics import StrettoError
from ...dsl.plan import Plan
from ...dsl.resolve_values import batch_inputs, states_role
from ...ir.attributes import to_attribute
from ...ir.bindings import Value
from ...ir.module import Level, Module, argument_records, entry, terminator
from ...ir.types import from_mlir, is_tensor
from ..base import Pass, Remark, RemarkKind, Report
from .tied_dims import TiedDims

BATCH_RESULTS = "comm.batch_results"
"""The attribute of a module with the indices of main's results that have a row for each row of the batch."""


@dataclass(frozen=True)
class CheckBatch(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "check-batch"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    plan: Plan
    """The plan; its statements about inputs and the pipeline are used."""

    def run(self, module: Module) -> Report:
        inputs, batch = _inputs(self.plan, module)
        if not batch or not self._cuts():
            return Report()
        by_number = [name for name in batch[1:] if not states_role(self.plan, name) and list(inputs[name].uses)]
        is_alone = self.plan.pipeline is not None and self.plan.pipeline.per_microbatch
        if not by_number and not is_alone:
            return Report()
        # Where microbatches are not computed alone, an op that mixes rows is refused later, and by its name.
        tied = TiedDims(module, through_mixing=self.plan.pipeline is not None and not is_alone)
        untied = [name for name in by_number if not tied.are_tied(inputs[batch[0]], inputs[name])]
        pipeline = self.plan.pipeline
        if untied and pipeline is not None:
            parts = pipeline.microbatches if is_alone else 1  # the module is that of one microbatch
            raise unclear_role(self.plan, batch, untied[0], _rows(inputs[untied[0]]) * parts)
        if is_alone:
            results = enumerate(terminator(module.functions()["main"]).operands)
            rows = [index for index, v in results if _has_dims(v) and tied.are_tied(inputs[batch[0]], v)]
            module.operation.attributes[BATCH_RESULTS] = to_attribute(rows)
        return Report(0, tuple(self._remark(name, batch, _rows(inputs[name])) for name in untied))

    def _cuts(self) -> bool:
        """Whether the batch has more than one part."""
        parts = [size for axis, size in self.plan.mesh.axes if axis in self.plan.data_axes]
        pipeline = self.plan.pipeline
        return any(size > 1 for size in (*parts, *(() if pipeline is None else (pipeline.microbatches,))))

    def _remark(self, name: str, batch: tuple[str, ...], rows: int) -> Remark:
        message = (
            f'input "{name}" is cut as the batch is because it has {rows} rows too, though no operation ties '
            f'them to those of "{batch[0]}"; if it is no part of the batch, say so: shard inputs "{name}" whole'
        )
        return Remark(self.name, RemarkKind.NOTE, message)


def unclear_role(plan: Plan, batch: tuple[str, ...], name: str, rows: int) -> StrettoError:
    """E0405 for an input that may be the batch's or not, with the two statements that say so."""
    names = ", ".join(f'"{each}"' for each in batch)
    over = f" over {', '.join(plan.data_axes)}" if plan.data_axes else ""
    return StrettoError(
        "E0405",
        f'input "{name}" has {rows} rows, as many as the batch, and nothing else tells whether it is a part of it',
        span=plan.pipeline.span if plan.pipeline is not None else None,
        expected=f'expected operations that take a row of "{name}" for each row of "{batch[0]}", or a word of the plan',
        help=f'add to the plan: shard inputs "{name}" whole; or, if it is a part of the batch: '
        f"shard inputs {names} batch{over}",
    )


def _inputs(plan: Plan, module: Module) -> tuple[dict[str, Value], tuple[str, ...]]:
    """The inputs by name, and the names of those that are the batch."""
    main = module.functions()["main"]
    pairs = zip(argument_records(main), entry(main).arguments, strict=True)
    values = {record["name"]: value for record, value in pairs if record.get("kind") == "input"}
    return values, batch_inputs(plan, {name: from_mlir(value.type).shape for name, value in values.items()})


def _rows(value: Value) -> int:
    return from_mlir(value.type).shape[0]


def _has_dims(value: Value) -> bool:
    return is_tensor(value.type) and bool(from_mlir(value.type).shape)
