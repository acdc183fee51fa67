"""Every way to write an rms_norm becomes nn.rms_norm with its backward; what only looks like one is left."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from stretto.ir.module import entry, refresh_type, terminator
from stretto.ir.placement import Shard
from stretto.ir.types import from_mlir, to_mlir
from torch import Tensor

from .steps import assert_kept, misses, names, raised, step

EPS = 1e-6
GENERATOR = torch.Generator().manual_seed(0)
X, GRAD = (torch.randn(2, 3, 8, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
WEIGHT = torch.randn(8, generator=GENERATOR, dtype=torch.float64)
BOTH = ["nn.rms_norm", "nn.rms_norm_backward"]

Norm = Callable[[Tensor, Tensor], Tensor]


def power(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS))


def product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.rsqrt(EPS + (x * x).mean(2, True)) * x * weight


def torchs_own(x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(x, (8,), weight, EPS)


def shifted_weight(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS) * (1.0 + weight)


def in_float32(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)


def residual(x: Tensor, weight: Tensor) -> Tensor:
    return x + power(x, weight)


def twice(x: Tensor, weight: Tensor) -> Tensor:
    return power(x, weight) * product(x, weight) + x


def stacked(x: Tensor, weight: Tensor) -> Tensor:
    y = residual(x, weight)
    return residual(y, weight) + y


@pytest.mark.parametrize("norm", [power, product, torchs_own, shifted_weight, residual])
@pytest.mark.parametrize("trained", [(0, 1), (0,), (1,)])
def test_a_norm_and_its_backward_are_raised_and_keep_their_values(norm: Norm, trained: tuple[int, ...]) -> None:
    assert raised(step(norm, (X, WEIGHT), trained)) == BOTH
    assert_kept(step(norm, (X, WEIGHT), trained), (X, WEIGHT, GRAD))


@pytest.mark.parametrize("norm", [twice, stacked])
def test_norms_that_share_a_gradient_sum_are_raised_one_by_one(norm: Norm) -> None:
    assert sorted(raised(step(norm, (X, WEIGHT), (0, 1)))) == sorted(BOTH * 2)
    assert_kept(step(norm, (X, WEIGHT), (0, 1)), (X, WEIGHT, GRAD))


def test_casts_around_the_norm_are_part_of_it() -> None:
    x, weight, grad = X.bfloat16(), WEIGHT.bfloat16(), GRAD.bfloat16()
    module = step(in_float32, (x, weight), (0, 1))
    assert raised(module) == BOTH
    assert set(names(module)) == set(BOTH)
    assert_kept(step(in_float32, (x, weight), (0, 1)), (x, weight, grad), tolerance=2e-2)


def test_a_gradient_does_not_take_the_placement_of_its_parameter() -> None:
    module = step(power, (X, WEIGHT), (0, 1))
    [main] = module.functions().values()
    weight = entry(main).arguments[1]
    weight.set_type(to_mlir(replace(from_mlir(weight.type), placement=(("tp", Shard(0)),))))
    refresh_type(main)
    assert raised(module) == BOTH
    assert [from_mlir(v.type).placement for v in terminator(main).operands] == [(), (), ()]


def test_nothing_of_the_chains_is_left() -> None:
    module = step(power, (X, WEIGHT), (0, 1))
    raised(module)
    assert names(module) == BOTH


def test_a_norm_of_a_matrix_is_raised() -> None:
    assert_kept(step(power, (X[0], WEIGHT), (0, 1)), (X[0], WEIGHT, GRAD[0]))


def test_a_norm_without_a_backward_is_raised() -> None:
    assert raised(step(power, (X, WEIGHT))) == ["nn.rms_norm"]


def another_use(x: Tensor, weight: Tensor) -> Tensor:
    normal = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * normal + normal.cos()


def over_two_dims(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean((1, 2), keepdim=True) + EPS))


def without_weight(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) + weight


def of_another_value(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x.cos() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS))


@pytest.mark.parametrize(
    ("norm", "difference"),
    [
        (another_use, 'also used by "aten.'),
        (over_two_dims, "the mean is over dims"),
        (without_weight, "no weight of the last dim's size"),
        (of_another_value, "does not scale what was squared"),
    ],
)
def test_a_near_miss_is_left_and_says_what_differs(norm: Norm, difference: str) -> None:
    [message] = misses(step(norm, (X, WEIGHT), (0, 1)))
    assert difference in message


def test_a_mean_taken_in_sixteen_bits_is_left() -> None:
    [message] = misses(step(power, (X.bfloat16(), WEIGHT.bfloat16()), (0, 1)))
    assert "taken in torch.bfloat16" in message


def test_a_reciprocal_root_of_something_else_is_no_near_miss() -> None:
    def batch_norm(x: Tensor, weight: Tensor) -> Tensor:
        return weight * x * torch.rsqrt(x.var(-1, keepdim=True) + EPS)

    assert misses(step(batch_norm, (X, WEIGHT), (0, 1))) == []
