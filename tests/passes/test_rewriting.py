"""The rewriting driver: which operations patterns see, what reports say, and what counts as unused."""

import pytest
import torch
from stretto.ir.bindings import mlir
from stretto.ir.dialects.context import context
from stretto.ir.module import Module, entry, operations
from stretto.ir.types import TensorType
from stretto.passes.base import RemarkKind
from stretto.passes.rewriting import Applied, Declined, Emitter, Outcome, Site, erase_unused, producer, rewrite, users

TEXT = """
module {
  func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {
    %a = "aten.neg_default"(%x) : (tensor<4xf32>) -> tensor<4xf32> loc("layers.0"("gpt.py":5:0))
    %b = "aten.neg_default"(%a) : (tensor<4xf32>) -> tensor<4xf32> loc("layers.1"("gpt.py":5:0))
    %c = "aten.exp_default"(%b) : (tensor<4xf32>) -> tensor<4xf32>
    return %c : tensor<4xf32>
  }
}
"""


@pytest.fixture
def module() -> Module:
    return Module.parse(TEXT)


def names(module: Module) -> list[str]:
    return [op.operation.name for op in operations(module.functions()["main"])][:-1]


def doubled(site: Site) -> Outcome:
    once = site.emitter.op(site.call.name, *site.call.args, type=site.type)
    site.replace(site.emitter.like(site.call.name, once))
    return Applied("done twice")


def test_a_pattern_replaces_operations_in_their_place_and_does_not_see_what_it_made(module: Module) -> None:
    report = rewrite(module, "some-pass", {"aten.neg.default": doubled})
    assert report.rewritten == 2
    assert names(module) == ["aten.neg_default"] * 4 + ["aten.exp_default"]


def test_what_a_pattern_builds_has_the_location_of_what_it_replaces(module: Module) -> None:
    before = [str(op.location) for op in operations(module.functions()["main"])]
    rewrite(module, "some-pass", {"aten.exp.default": doubled})
    after = [str(op.location) for op in operations(module.functions()["main"])]
    assert after == [*before[:2], before[2], *before[2:]]


def test_remarks_say_what_patterns_did_and_declined_once_for_equal_layers(module: Module) -> None:
    def pattern(site: Site) -> Outcome:
        return Declined("left") if site.call.name == "aten.neg.default" else None

    report = rewrite(module, "some-pass", dict.fromkeys(("aten.neg.default", "aten.exp.default"), pattern))
    [remark] = report.remarks
    assert (report.rewritten, remark.kind, remark.message) == (0, RemarkKind.MISSED, "2 x left")


def test_unused_operations_go_with_what_only_they_use(module: Module) -> None:
    main = module.functions()["main"]
    with context(), mlir.InsertionPoint(list(operations(main))[-1]), mlir.Location.unknown() as loc:
        emitter = Emitter(loc)
        inner = emitter.like("aten.exp.default", entry(main).arguments[0])
        emitter.op("aten.neg.default", inner, type=TensorType(torch.float32, (4,)))
    erase_unused(main, {"aten.exp.default"})
    assert names(module) == [
        "aten.neg_default",
        "aten.neg_default",
        "aten.exp_default",
        "aten.exp_default",
        "aten.neg_default",
    ]
    erase_unused(main)
    assert names(module) == ["aten.neg_default", "aten.neg_default", "aten.exp_default"]


def test_producers_and_users_are_the_operations_next_to_a_value(module: Module) -> None:
    main = module.functions()["main"]
    first, second, *_ = operations(main)
    assert producer(first.operands[0]) is None
    made = producer(second.operands[0])
    assert made is not None and made.name == "aten.neg.default"
    assert users(first.results[0]) == [second]
