"""Faults by which an item of a plan is read wrongly or has no effect: a right program, of another plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stretto.dsl import parser
from stretto.dsl.attention import Method
from stretto.dsl.memory import nanobatches, recompute
from stretto.dsl.memory.nanobatches import OrderOfNanobatches
from stretto.dsl.memory.split import Split
from stretto.dsl.plan import Plan
from stretto.ir.attention_methods import ZIGZAG
from stretto.passes import default_pipeline
from stretto.passes.normalize.bound_experts import BoundExperts
from stretto.passes.sharding import choose_attention, gather_parameters

from .finding import Finder
from .source_faults import Plant, SourceFault, Wrong, entry, giving, value
from .users_models import Case

_READ_SPLIT = parser.READERS["split"]
_BUCKET: Any = Plan.bucket.fget  # type: ignore[attr-defined]


def fault(where: str, plant: Plant, case: Case) -> SourceFault:
    return SourceFault(where, plant, Finder.COMPILE_CHECK, case)


def in_two(*args: Any) -> Any:
    stated = _READ_SPLIT(*args)
    return replace(stated, chunks=2) if isinstance(stated, Split) else stated


def without_nodes(records: Any) -> Any:
    return [{key: each for key, each in record.items() if key != "within"} for record in records]


def nothing(*_: Any) -> Any:
    return ()


SEQUENCE: Wrong = lambda *_: OrderOfNanobatches.SEQUENCE  # noqa: E731

ITEM_FAULTS = {
    "experts have room for all rows": fault(
        "passes/normalize/bound_experts: _bound",
        value(BoundExperts, "_bound", lambda *_: None),
        Case("routed", "bounded"),
    ),
    "a loss is computed in two chunks": fault(
        "dsl/memory/split: read_split", entry(parser.READERS, "split", in_two), Case("gpt", "loss in 4")
    ),
    "nanobatches follow each other": fault(
        "dsl/memory/nanobatches: _read_order",
        entry(nanobatches._READERS, "order", ("order", SEQUENCE)),
        Case("gpt", "turns"),
    ),
    "nanobatches are of one size": fault(
        "dsl/memory/nanobatches: _read_numbers",
        entry(nanobatches._READERS, "sizes", ("sizes", nothing)),
        Case("gpt", "3 and 1"),
    ),
    "what is excepted is computed again": fault(
        "dsl/memory/recompute: _read_kinds",
        entry(recompute._READERS, "except", ("exceptions", nothing)),
        Case("gpt", "but attention"),
    ),
    "products are not fused": fault(
        "passes/default_pipeline: RINGS",
        value(default_pipeline, "RINGS", ()),
        Case("gpt", "fused"),
    ),
    "buckets have a thousandth of their bytes": fault(
        "dsl/plan: bucket",
        value(Plan, "bucket", property(lambda plan: _BUCKET(plan) // 1000)),
        Case("gpt", "buckets"),
    ),
    "parameters are gathered over nodes at each use": fault(
        "passes/sharding/gather_parameters: run",
        giving(gather_parameters, "argument_records", without_nodes),
        Case("gpt", "nodes"),
    ),
    "bidirectional attention in zigzag runs a ring": fault(
        "passes/sharding/choose_attention: _ZIGZAG",
        entry(choose_attention._ZIGZAG, Method.BIDIRECTIONAL, ZIGZAG),
        Case("gpt", "both ways"),
    ),
}
