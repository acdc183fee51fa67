"""A pass is given modules of the levels that it takes; what the manager says of others."""

from __future__ import annotations

import pytest
from stretto.diagnostics import StrettoError
from stretto.ir.module import Level, Module
from stretto.passes.manager import PassManager, Verification
from stretto.passes.pass_class import pass_class
from stretto.passes.pipeline_text import parse_pipeline
from stretto.passes.registry import TABLE

WHOLE = {
    "bound-experts", "cap-experts", "cast-gradients", "check-batch", "choose-attention", "exchange-experts",
    "find-blocks", "find-causal-masks", "fold-layers",
    "gather-parameters", "keep-dims-apart", "partition-tensors", "place-arguments", "propagate-placements",
    "put-batch-first", "raise-experts", "raise-idioms", "raise-matmuls", "split-counts", "split-loss", "split-means",
}  # fmt: skip
CUT = {
    "assign-lanes", "average-microbatches", "bucket-collectives", "cap-memory", "cut-nanobatches", "cut-stages",
    "fuse-regions", "hoist-collectives", "order-tasks", "outline-idioms", "recompute", "ring-matmuls", "route-rows",
    "scatter-norms", "schedule-lanes", "split-all-reduce", "split-segments",
    "start-collectives", "use-local-statistics",
}  # fmt: skip
NEED_A_PLAN = {
    "average-microbatches", "bound-experts", "cap-experts", "cap-memory", "check-batch", "choose-attention",
    "cut-nanobatches", "cut-stages", "exchange-experts", "order-tasks", "place-arguments", "recompute", "ring-matmuls",
    "scatter-norms", "split-loss", "split-segments", "use-local-statistics",
}  # fmt: skip


def _module(level: Level) -> Module:
    main = "func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> { return %x : tensor<4xf32> }"
    return Module.parse(f'module attributes {{comm.level = "{level}", comm.mesh = [["tp", 2]]}} {{ {main} }}')


def test_each_pass_of_ours_takes_these_levels() -> None:
    taken = {name: pass_class(name).levels for name in TABLE}
    assert {name for name in TABLE if taken[name] == {Level.ATEN}} == WHOLE
    assert {name for name in TABLE if taken[name] == {Level.COMM}} == CUT


@pytest.mark.parametrize("verification", Verification)
@pytest.mark.parametrize("name", sorted((WHOLE | CUT) - NEED_A_PLAN))
def test_a_pass_refuses_a_module_of_another_level(name: str, verification: Verification) -> None:
    found = Level.COMM if name in WHOLE else Level.ATEN
    module = _module(found)
    before = str(module)
    with pytest.raises(StrettoError, match=f'"{name}" does not take a module of level "{found}"') as caught:
        PassManager(parse_pipeline(name), verification=verification).run(module)
    assert caught.value.code == "E0421" and str(module) == before
    assert "partition-tensors" in caught.value.help and "level" in caught.value.expected


@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize("name", sorted({*TABLE} - WHOLE - CUT))
def test_a_pass_that_says_nothing_of_levels_takes_both(name: str, level: Level) -> None:
    PassManager(parse_pipeline(name)).run(_module(level))
