"""Rotary embeddings become nn.rotary with their backward, however the halves are cut and the angles broadcast."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from .steps import assert_kept, misses, names, raised, step

GENERATOR = torch.Generator().manual_seed(0)
X, GRAD = (torch.randn(2, 3, 5, 8, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
COS, SIN = (torch.randn(1, 5, 8, generator=GENERATOR, dtype=torch.float64) for _ in range(2))

Rotary = Callable[[Tensor, Tensor, Tensor], Tensor]


def turned(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def by_slices(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos.unsqueeze(1) + turned(x) * sin.unsqueeze(1)


def by_chunks(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return sin * torch.cat((-high, low), dim=-1) + cos * x


def by_matrices(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos[0] + turned(x) * sin[0]


def by_four_dims(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos[0][None, None], sin[0][None, None]
    return x * cos + turned(x) * sin


def with_residual(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x.sin() + by_slices(x, cos, sin)


def twice(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return by_slices(x, cos, sin) * by_slices(x[:, :2].cos(), cos, sin).sum()


FORMS = [by_slices, by_chunks, by_matrices, by_four_dims, with_residual]


@pytest.mark.parametrize("rotary", FORMS)
def test_a_rotary_embedding_and_its_backward_are_raised_and_keep_their_values(rotary: Rotary) -> None:
    assert raised(step(rotary, (X, COS, SIN), (0,))) == ["nn.rotary", "nn.rotary_backward"]
    assert_kept(step(rotary, (X, COS, SIN), (0,)), (X, COS, SIN, GRAD))


def test_two_embeddings_of_different_shapes_are_raised() -> None:
    expected = ["nn.rotary", "nn.rotary", "nn.rotary_backward", "nn.rotary_backward"]
    assert raised(step(twice, (X, COS, SIN), (0,))) == expected
    assert_kept(step(twice, (X, COS, SIN), (0,)), (X, COS, SIN, GRAD))


def test_nothing_of_the_chains_is_left() -> None:
    module = step(by_slices, (X, COS, SIN), (0,))
    raised(module)
    assert names(module) == ["nn.rotary", "nn.rotary_backward"]


def other_way(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos.unsqueeze(1) + torch.cat((x[..., half:], -x[..., :half]), dim=-1) * sin.unsqueeze(1)


def subtracted(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos.unsqueeze(1) - turned(x) * sin.unsqueeze(1)


def another_use(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    halves = turned(x)
    return x * cos.unsqueeze(1) + halves * sin.unsqueeze(1) + halves.cos()


def per_head(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    heads = torch.ones(1, 3, 1, 1, dtype=x.dtype, device=x.device)
    return x * (cos.unsqueeze(1) * heads) + turned(x) * (sin.unsqueeze(1) * heads)


def three_dims(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first = x[:, 0]
    return first * cos + turned(first) * sin


@pytest.mark.parametrize(
    ("rotary", "difference"),
    [
        (subtracted, "not scaled and added"),
        (another_use, 'also used by "aten.'),
        (per_head, "do not stand for all heads"),
        (three_dims, "not (batch, heads, sequence, size)"),
    ],
)
def test_a_near_miss_is_left_and_says_what_differs(rotary: Rotary, difference: str) -> None:
    [message] = misses(step(rotary, (X, COS, SIN), (0,)))
    assert difference in message


def test_a_turn_the_other_way_is_something_else() -> None:
    assert misses(step(other_way, (X, COS, SIN), (0,))) == []
