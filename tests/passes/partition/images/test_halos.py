"""Ops on images that ranks cut on one or two dims: what each rank computes is what one device computes on the whole.

Padding of uneven chunks is NaN, so that nothing may depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from stretto.ir.bindings import mlir
from stretto.ir.dialects.context import context
from stretto.ir.interpreter import Padding, run
from stretto.ir.module import Module, build_function, entry, finish_function
from stretto.ir.operations import Call, build
from stretto.ir.placement import Mesh, Partial, Placement, Shard
from stretto.ir.types import TensorType, absent, to_mlir
from stretto.passes.manager import PassManager
from stretto.passes.partition.partition_tensors import PartitionTensors
from torch import Tensor

from ....subsets import only, some

MESH: Mesh = (("a", 2), ("b", 3))
Cuts = Mapping[str, int]
"""The dim that each axis cuts."""


def f(*shape: int) -> Tensor:
    """Random numbers."""
    return torch.randn(*shape, dtype=torch.float64)


@dataclass(frozen=True)
class Step:
    """One call: its operands are tensors among its arguments; `images` are those, and the results, that are cut."""

    op: str
    arguments: tuple[Any, ...]
    images: tuple[int, ...] = (0,)
    image_results: tuple[int, ...] = (0,)
    sums: tuple[int, ...] = ()
    """The results that are sums over the cut dims."""
    size: Mapping[str, int] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        """The operands."""
        return [a for a in self.arguments if isinstance(a, Tensor)]

    def expected(self) -> list[Tensor | None]:
        """What one device computes."""
        result = torch_op(self.op)(*self.arguments)
        return list(result) if isinstance(result, tuple) else [result]


def torch_op(name: str) -> Any:
    """Torch's op by its name here."""
    _, base, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, base), overload)


def partitioned(step: Step, cuts: Cuts, mesh: Mesh) -> Module:
    """The module of the call on one rank."""
    module, tensors = Module.empty(mesh=mesh), step.tensors
    shards = {axis: Shard(dim) for axis, dim in cuts.items()}

    def typed(tensor: Tensor, *, cut: bool, sums: bool = False) -> Any:
        on = {axis: Partial() for axis in cuts} if sums else shards if cut else {}
        placement = Placement.of(tensor.dim(), dict(on), mesh)
        return to_mlir(TensorType(tensor.dtype, tuple(tensor.shape)).placed(placement, mesh))

    main = build_function(module, "main", [typed(t, cut=i in step.images) for i, t in enumerate(tensors)])
    types = [
        absent() if t is None else typed(t, cut=i in step.image_results, sums=i in step.sums)
        for i, t in enumerate(step.expected())
    ]
    with context(), mlir.Location.unknown() as loc, mlir.InsertionPoint(entry(main)):
        operands = iter(entry(main).arguments)
        arguments = tuple(next(operands) if isinstance(a, Tensor) else a for a in step.arguments)
        results = build(Call(step.op, arguments), types, loc)
    finish_function(main, [v for v, t in zip(results, step.expected(), strict=True) if t is not None])
    PassManager([PartitionTensors()]).run(module)
    return module


def assert_as_on_one_device(step: Step, cuts: Cuts, mesh: Mesh = MESH) -> None:
    """Every result, on all ranks."""
    expected = [t for t in step.expected() if t is not None]
    for actual, wanted in zip(
        run(partitioned(step, cuts, mesh), step.tensors, padding=Padding.NAN), expected, strict=True
    ):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-10)


def convolution(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    transposed: bool = False,
    output_padding: int = 0,
    groups: int = 1,
) -> tuple[Any, ...]:
    """A convolution's arguments, by its numbers; four channels in, six out."""
    spaces = len(kernel)
    weight = f(4, 6 // groups, *kernel) if transposed else f(6, 4 // groups, *kernel)
    numbers = [[n] * spaces for n in (stride, padding, dilation)]
    return f(*shape), weight, f(6), *numbers, transposed, [output_padding] * spaces, groups


CONVOLUTIONS: Mapping[str, tuple[Callable[[], tuple[Any, ...]], tuple[Cuts, ...]]] = {
    "same": (lambda: convolution((2, 4, 6, 12), (3, 3), padding=1), ({"a": 2}, {"a": 2, "b": 3}, {"b": 2})),
    "nested": (lambda: convolution((2, 4, 12, 5), (3, 3), padding=1), ({"a": 2, "b": 2},)),
    "batch": (lambda: convolution((2, 4, 6, 6), (3, 3), padding=1), ({"a": 0, "b": 2},)),
    "uneven": (lambda: convolution((2, 4, 7, 10), (3, 3), padding=1), ({"a": 2, "b": 3}, {"b": 2})),
    "strided": (lambda: convolution((2, 4, 8, 12), (3, 3), stride=2, padding=1), ({"a": 2, "b": 3},)),
    "strides that do not fit": (lambda: convolution((2, 4, 10, 13), (3, 3), stride=2, padding=1), ({"a": 2, "b": 3},)),
    "patches": (lambda: convolution((2, 4, 8, 12), (4, 2), stride=2), ({"a": 2, "b": 3},)),
    "without padding": (lambda: convolution((2, 4, 8, 9), (3, 4)), ({"a": 2, "b": 3},)),
    "dilated": (lambda: convolution((2, 4, 8, 12), (3, 3), padding=2, dilation=2), ({"a": 2, "b": 3},)),
    "wide padding": (lambda: convolution((2, 4, 6, 6), (3, 3), padding=3), ({"a": 2, "b": 3},)),
    "several hops": (lambda: convolution((2, 4, 4, 6), (3, 5), padding=2), ({"a": 2, "b": 3},)),
    "few rows": (lambda: convolution((2, 4, 2, 3), (5, 7), padding=3), ({"a": 2, "b": 3},)),
    "a rank without rows": (lambda: convolution((2, 4, 4, 4), (3, 3), padding=1), ({"b": 2},)),
    "stride without kernel": (lambda: convolution((2, 4, 8, 12), (1, 1), stride=2), ({"a": 2, "b": 3},)),
    "in groups": (lambda: convolution((2, 4, 6, 6), (3, 3), padding=1, groups=2), ({"a": 2, "b": 3},)),
    "of a line": (lambda: convolution((2, 4, 9), (3,), padding=1), ({"a": 2}, {"b": 2})),
    "of a volume": (lambda: convolution((2, 4, 4, 5, 6), (3, 3, 3), padding=1), ({"a": 2, "b": 4},)),
    "transposed": (lambda: convolution((2, 4, 4, 6), (4, 4), 2, 1, transposed=True), ({"a": 2, "b": 3},)),
    "transposed, odd": (
        lambda: convolution((2, 4, 5, 7), (3, 3), 2, 1, transposed=True, output_padding=1), ({"a": 2, "b": 3},),
    ),
    "transposed, with gaps": (
        lambda: convolution((2, 4, 4, 6), (1, 1), 3, transposed=True, output_padding=2), ({"a": 2, "b": 3},),
    ),
    "transposed, dilated": (
        lambda: convolution((2, 4, 6, 6), (3, 3), 1, 2, dilation=2, transposed=True), ({"a": 2, "b": 3},),
    ),
}  # fmt: skip


def backward_of(arguments: tuple[Any, ...], mask: tuple[bool, ...] = (True, True, True)) -> Step:
    """The backward of a convolution."""
    image, weight, bias, *numbers = arguments
    gradient = f(*torch.ops.aten.convolution(*arguments).shape)
    given = (gradient, image, weight, [len(bias)], *numbers, list(mask))
    return Step("aten.convolution_backward.default", given, (0, 1), (0,), (1, 2))


@pytest.mark.parametrize("name", only(["uneven", "transposed"], CONVOLUTIONS))
def test_a_cut_convolution_is_that_of_one_device(name: str) -> None:
    torch.manual_seed(3)
    make, all_cuts = CONVOLUTIONS[name]
    arguments = make()
    for cuts in all_cuts:
        assert_as_on_one_device(Step("aten.convolution.default", arguments), cuts)


@pytest.mark.parametrize("name", only(["strides that do not fit", "several hops"], CONVOLUTIONS))
def test_gradients_of_a_cut_convolution_are_those_of_one_device(name: str) -> None:
    torch.manual_seed(4)
    make, all_cuts = CONVOLUTIONS[name]
    step = backward_of(make())
    for cuts in all_cuts:
        assert_as_on_one_device(step, cuts)


def group_norm(*shape: int) -> tuple[Any, ...]:
    """A group norm's arguments: two groups."""
    batch, channels, *space = shape
    return f(*shape), f(channels), f(channels), batch, channels, torch.Size(space).numel(), 2, 1e-5


@pytest.mark.parametrize("cuts", some({"a": 2, "b": 3}, {"a": 3, "b": 3}, {"b": 3}), ids=str)
def test_statistics_of_a_group_norm_are_those_of_whole_images(cuts: Cuts) -> None:
    torch.manual_seed(5)
    for shape in ((2, 4, 6, 12), (2, 4, 5, 7)):
        image, weight, bias, *numbers = group_norm(*shape)
        forward = Step("aten.native_group_norm.default", (image, weight, bias, *numbers))
        _, mean, deviation = torch.ops.aten.native_group_norm(image, weight, bias, *numbers)
        given = (f(*shape), image, mean, deviation, weight, *numbers[:-1], [True, True, True])
        backward = Step("aten.native_group_norm_backward.default", given, (0, 1), (0,), (1, 2))
        for step in (forward, backward):
            assert_as_on_one_device(step, cuts)


BOTH: Cuts = {"a": 2, "b": 3}
PLANES: Mapping[str, tuple[str, Callable[[], tuple[Any, ...]]]] = {
    "max pool": ("max_pool2d_with_indices", lambda: (f(2, 3, 8, 12), [2, 2])),
    "max pool with overlap": ("max_pool2d_with_indices", lambda: (f(2, 3, 8, 12), [3, 3], [2, 2], [1, 1])),
    "max pool, dilated": ("max_pool2d_with_indices", lambda: (f(2, 3, 9, 13), [3, 2], [1, 2], [1, 0], [2, 1])),
    "max pool, uneven": ("max_pool2d_with_indices", lambda: (f(2, 3, 7, 11), [3], [2], [1], [1], True)),
    "max pool of volumes": ("max_pool3d_with_indices", lambda: (f(2, 3, 6, 6, 4), [2, 3, 2], [2, 1, 2], [0, 1, 0])),
    "average pool": ("avg_pool2d", lambda: (f(2, 3, 8, 12), [2, 2])),
    "average pool with padding": ("avg_pool2d", lambda: (f(2, 3, 8, 12), [3, 3], [2, 2], [1, 1])),
    "average pool, uneven": ("avg_pool2d", lambda: (f(2, 3, 7, 11), [3, 3], [1, 1], [1, 1])),
    "average pool of volumes": ("avg_pool3d", lambda: (f(2, 3, 6, 6, 4), [2, 3, 2], [2, 1, 2], [0, 1, 0])),
    "adaptive pool": ("_adaptive_avg_pool2d", lambda: (f(2, 3, 8, 12), [4, 6])),
    "nearest": ("upsample_nearest2d", lambda: (f(2, 3, 4, 6), [8, 18])),
    "nearest, uneven": ("upsample_nearest2d", lambda: (f(2, 3, 5, 7), [10, 21])),
    "nearest to fewer": ("upsample_nearest2d", lambda: (f(2, 3, 8, 12), [4, 4])),
    "nearest of lines": ("upsample_nearest1d", lambda: (f(2, 3, 6), [12])),
    "nearest, exact": ("_upsample_nearest_exact2d", lambda: (f(2, 3, 9, 6), [3, 12])),
    "bilinear": ("upsample_bilinear2d", lambda: (f(2, 3, 4, 6), [8, 18], False)),
    "bilinear, uneven": ("upsample_bilinear2d", lambda: (f(2, 3, 5, 7), [10, 28], False)),
    "bilinear to fewer": ("upsample_bilinear2d", lambda: (f(2, 3, 8, 12), [4, 4], False)),
    "trilinear": ("upsample_trilinear3d", lambda: (f(2, 3, 2, 3, 4), [4, 6, 8], False)),
    "bicubic": ("upsample_bicubic2d", lambda: (f(2, 3, 4, 6), [8, 12], False)),
    "constant padding": ("constant_pad_nd", lambda: (f(2, 3, 6, 8), [1, 2, 2, 0], 1.5)),
    "cropping": ("constant_pad_nd", lambda: (f(2, 3, 8, 9), [-1, 0, 1, -2])),
    "reflection": ("reflection_pad2d", lambda: (f(2, 3, 6, 9), [2, 1, 3, 2])),
    "reflection, uneven": ("reflection_pad2d", lambda: (f(2, 3, 5, 7), [1, 2, 1, 1])),
    "replication": ("replication_pad2d", lambda: (f(2, 3, 5, 7), [2, 1, 3, 2])),
}  # fmt: skip


@pytest.mark.parametrize("name", only(["max pool, uneven", "constant padding"], PLANES))
def test_cut_planes_are_those_of_one_device(name: str) -> None:
    torch.manual_seed(6)
    base, make = PLANES[name]
    arguments, cuts = make(), {"b": 2} if "lines" in name else BOTH
    results = (0, 1) if "max" in base else (0,)
    assert_as_on_one_device(Step(f"aten.{base}.default", arguments, image_results=results), cuts)


@pytest.mark.parametrize(
    "name",
    only(
        ["max pool, uneven", "bilinear", "reflection"],
        [name for name in PLANES if name not in ("constant padding", "cropping")],
    ),
)
def test_gradients_of_cut_planes_are_those_of_one_device(name: str) -> None:
    torch.manual_seed(7)
    base, make = PLANES[name]
    image, *rest = make()
    made = torch_op(f"aten.{base}.default")(image, *rest)
    out, *indices = made if isinstance(made, tuple) else (made,)
    gradient = f(*out.shape)
    if "upsample" in base:
        given: tuple[Any, ...] = (gradient, rest[0], list(image.shape), *rest[1:])
    elif "_pool" in base and "adaptive" not in base:
        defaults = [[], [0], [1], False] if indices else [[], [0], False, True, None]
        numbers = [*rest, *defaults[len(rest) - 1 :]]
        given = (gradient, image, *numbers, *indices)
    else:
        given = (gradient, image, *(rest if "pad" in base else ()))
    images = tuple(range(sum(isinstance(each, Tensor) for each in given)))
    assert_as_on_one_device(Step(f"aten.{base}_backward.default", given, images), {"b": 2} if "lines" in name else BOTH)
