"""lower-idioms expands nn operations into aten operations of the same results."""

import torch
from stretto.ir.bindings import Type, mlir
from stretto.ir.locations import Origin, to_location
from stretto.ir.module import Module, build_function, entry, finish_function, terminator
from stretto.ir.operations import Call, build
from stretto.ir.placement import Partial, Reduce
from stretto.ir.types import TensorType, absent, from_mlir, to_mlir
from stretto.passes.normalize.lower_idioms import LowerIdioms

from .idioms.steps import names

X = to_mlir(TensorType(torch.float32, (4, 6, 8)))
WEIGHT = to_mlir(TensorType(torch.float32, (8,)))
RSTD = to_mlir(TensorType(torch.float32, (4, 6, 1)))


def norm_backward(*, grad_x: Type = X, grad_weight: Type = WEIGHT, returned: tuple[int, ...] = (0, 1)) -> Module:
    """A module with one nn.rms_norm_backward, which returns some of its results."""
    module = Module.empty()
    main = build_function(module, "main", [X, X, RSTD, WEIGHT])
    with mlir.InsertionPoint(entry(main)):
        call = Call("nn.rms_norm_backward", tuple(entry(main).arguments))
        results = build(call, [grad_x, grad_weight], to_location(Origin("norm", "model.py", 3, backward=True)))
    finish_function(main, [results[i] for i in returned])
    return module


def returned_types(module: Module) -> list[TensorType]:
    return [from_mlir(v.type) for v in terminator(module.functions()["main"]).operands]


def test_results_keep_their_placements() -> None:
    placed = to_mlir(TensorType(torch.float32, (8,), (("tp", Partial(Reduce.SUM)),)))
    module = norm_backward(grad_weight=placed)
    LowerIdioms().run(module)
    module.verify()
    assert returned_types(module) == [from_mlir(X), from_mlir(placed)]


def test_what_only_an_unused_result_needs_is_not_built() -> None:
    whole, part = norm_backward(), norm_backward(returned=(1,))
    LowerIdioms().run(whole)
    LowerIdioms().run(part)
    assert "aten.mean.dim" in names(whole)
    assert "aten.mean.dim" not in names(part)
    assert "aten.sum.dim_IntList" in names(part)


def test_a_result_that_is_absent_is_not_built() -> None:
    module = norm_backward(grad_weight=absent(), returned=(0,))
    LowerIdioms().run(module)
    module.verify()
    assert "aten.sum.dim_IntList" not in names(module)


def test_expanded_operations_keep_the_place_in_the_model_and_name_the_idiom() -> None:
    module = norm_backward()
    LowerIdioms().run(module)
    operations = list(entry(module.functions()["main"]).operations)[:-1]
    place = to_location(Origin("norm", "model.py", 3, backward=True), "rms_norm")
    assert {str(op.location) for op in operations} == {str(place)}
