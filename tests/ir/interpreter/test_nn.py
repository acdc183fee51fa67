"""The formulas of nn operations against torch's own functions, and their backwards against autograd; float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stretto.ir.interpreter.nn import evaluate
from torch import Tensor


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def call(name: str, *args: Any) -> list[Tensor]:
    """The results that are there."""
    return [r for r in evaluate(f"nn.{name}", args) if r is not None]


def same(made: list[Tensor], wanted: tuple[Tensor, ...]) -> None:
    for a, b in zip(made, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def gradients(out: Tensor, inputs: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, inputs, grad)


@pytest.mark.parametrize(("causal", "masked"), [(False, False), (True, False), (False, True)])
def test_attention_and_its_backward(causal: bool, masked: bool) -> None:
    q, k, v = (normal(2, 3, 5, 4, seed=i).requires_grad_() for i in range(3))
    mask = normal(2, 1, 5, 5, seed=3) if masked else None
    expected = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=0.3)
    grad = normal(2, 3, 5, 4, seed=4)
    back = gradients(expected, [q, k, v], grad)
    with torch.no_grad():
        out, logsumexp = call("attention", q, k, v, mask, causal, 0.3)
        same([out], (expected,))
        same(call("attention_backward", grad, q, k, v, out, logsumexp, mask, causal, 0.3), back)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_query_heads_in_groups_share_keys_and_values(groups: int, masked: bool) -> None:
    q, k, v = (normal(2, heads, 5, 3, seed=i).requires_grad_() for i, heads in enumerate((6, groups, groups)))
    mask = normal(2, 1, 5, 5, seed=3) if masked else None
    expected = F.scaled_dot_product_attention(q, k, v, mask, is_causal=not masked, enable_gqa=True)
    grad = normal(2, 6, 5, 3, seed=4)
    back = gradients(expected, [q, k, v], grad)
    with torch.no_grad():
        out, logsumexp = call("attention", q, k, v, mask, not masked, None)
        same([out], (expected,))
        same(call("attention_backward", grad, q, k, v, out, logsumexp, mask, not masked, None), back)


@pytest.mark.parametrize("masked", [False, True])
def test_parts_of_the_keys_are_merged_to_attention_over_all_of_them(masked: bool) -> None:
    q, k, v = (normal(2, 3, 6, 4, seed=i) for i in range(3))
    mask = normal(2, 1, 6, 6, seed=3) if masked else None
    if mask is not None:
        mask[:, :, 1] = float("-inf")
        mask[:, :, 2, :4] = float("-inf")
    total, weight, highest = (
        torch.zeros(2, 3, 6, 4).double(),
        torch.zeros(2, 3, 6).double(),
        normal(2, 3, 6) - torch.inf,
    )
    for first in (4, 0, 2):  # the causal rows 0 to 3 see none of the first part
        part = slice(first, first + 2)
        columns = None if mask is None else mask[..., part]
        made = call("attention", q, k[:, :, part], v[:, :, part], columns, True, None, None, torch.tensor(first))
        total, weight, highest = call("merge_attention", total, weight, highest, *made)
    out, logsumexp = call("attention", q, k, v, mask, True, None)
    same([(total / weight[..., None]).nan_to_num(), highest + weight.log()], (out, logsumexp))


def test_a_row_whose_scores_are_all_one_huge_number_is_the_mean_of_its_parts() -> None:
    values, lowest = normal(1, 1, 6, 2), torch.finfo(torch.float64).min
    mask = torch.full((1, 6), lowest, dtype=torch.float64)
    total, weight = torch.zeros(1, 1, 1, 2).double(), torch.zeros(1, 1, 1).double()
    highest = torch.full((1, 1, 1), -torch.inf).double()
    for first in (0, 2, 4):
        part = values[:, :, first : first + 2]
        made = call("attention", normal(1, 1, 1, 2), part, part, mask[:, :2], False, None)
        total, weight, highest = call("merge_attention", total, weight, highest, *made)
    same([total / weight[..., None]], (values.mean(2, keepdim=True),))


def test_attention_scales_by_the_root_of_the_head_size_where_nothing_is_said() -> None:
    q, k, v = (normal(1, 1, 3, 4, seed=i) for i in range(3))
    same(call("attention", q, k, v, None, False)[:1], (F.scaled_dot_product_attention(q, k, v),))


def test_rms_norm_and_its_backward() -> None:
    x, weight = normal(3, 4, 6).requires_grad_(), normal(6, seed=1).requires_grad_()
    expected = F.rms_norm(x, (6,), weight, 1e-3)
    grad = normal(3, 4, 6, seed=2)
    back = gradients(expected, [x, weight], grad)
    with torch.no_grad():
        y, rstd = call("rms_norm", x, weight, 1e-3)
        same([y], (expected,))
        same(call("rms_norm_backward", grad, x, rstd, weight), back)


@pytest.mark.parametrize("shape", [[6], [4, 6]], ids=str)
def test_layer_norm_and_its_backward(shape: list[int]) -> None:
    x = normal(3, 4, 6).requires_grad_()
    weight, bias = normal(*shape, seed=1).requires_grad_(), normal(*shape, seed=2).requires_grad_()
    expected = F.layer_norm(x, shape, weight, bias, 1e-3)
    grad = normal(3, 4, 6, seed=3)
    back = gradients(expected, [x, weight, bias], grad)
    with torch.no_grad():
        y, mean, rstd = call("layer_norm", x, weight, bias, shape, 1e-3)
        same([y], (expected,))
        same(call("layer_norm_backward", grad, x, mean, rstd, weight, bias, shape), back)


def test_layer_norm_without_weight_and_bias_has_one_gradient() -> None:
    x = normal(3, 6).requires_grad_()
    expected = F.layer_norm(x, [6])
    back = gradients(expected, [x], normal(3, 6, seed=1))
    with torch.no_grad():
        _, mean, rstd = call("layer_norm", x, None, None, [6], 1e-5)
        same(call("layer_norm_backward", normal(3, 6, seed=1), x, mean, rstd, None, None, [6]), back)


def test_rotary_rotates_pairs_of_the_halves_and_its_backward_is_its_transpose() -> None:
    x, angle = normal(2, 3, 5, 8).requires_grad_(), normal(1, 5, 4, seed=1)
    cos, sin = (torch.cat([f, f], -1) for f in (angle.cos(), angle.sin()))
    expected = torch.view_as_real(
        torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    )
    expected = torch.cat([expected[..., 0], expected[..., 1]], -1)
    grad = normal(2, 3, 5, 8, seed=2)
    back = gradients(expected, [x], grad)
    with torch.no_grad():
        same(call("rotary", x, cos, sin), (expected,))
        same(call("rotary_backward", grad, cos, sin), back)


def test_cross_entropy_and_its_backward_leave_ignored_rows_out() -> None:
    logits, labels = normal(7, 5).requires_grad_(), torch.tensor([0, 4, -100, 2, 2, -100, 1])
    expected = F.cross_entropy(logits, labels, reduction="sum")
    back = gradients(expected, [logits], torch.tensor(0.25, dtype=torch.float64))
    with torch.no_grad():
        total, count, logsumexp = call("cross_entropy", logits, labels, -100)
        same([total, logsumexp], (expected, logits.logsumexp(1)))
        assert count.item() == 5
        scale = torch.tensor(0.25, dtype=torch.float64)
        same(call("cross_entropy_backward", scale, logits, labels, logsumexp, -100), back)


@pytest.mark.parametrize("weighted", [False, True])
def test_losses_of_rows_in_two_dims_and_their_backward(weighted: bool) -> None:
    scores, labels = normal(2, 3, 5).requires_grad_(), torch.tensor([[0, 4, -100], [2, -100, 1]])
    weight, grad = (normal(5, seed=1).abs() if weighted else None), normal(2, 3, seed=2)
    expected = F.nll_loss(scores.transpose(1, 2), labels, weight, reduction="none")
    back = gradients(expected, [scores], grad)
    with torch.no_grad():
        same(call("nll_loss", scores, labels, weight, -100), (expected,))
        same(call("nll_loss_backward", grad, scores, labels, weight, -100), back)


def test_sixteen_bits_are_computed_in_float32_and_rounded_at_the_end() -> None:
    x, weight = normal(4, 64).bfloat16(), normal(64, seed=1).bfloat16()
    y, rstd = call("rms_norm", x, weight, 1e-6)
    assert y.dtype is torch.bfloat16 and rstd.dtype is torch.float32
    torch.testing.assert_close(rstd, x.float().square().mean(-1, keepdim=True).add(1e-6).rsqrt())
