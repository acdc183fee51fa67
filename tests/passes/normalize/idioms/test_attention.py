"""Fused attention becomes nn.attention with its mask, its causal flag and its scale."""

from typing import Any

import pytest
import torch
from stretto.ir.interpreter.nn import evaluate
from stretto.ir.kinds import kind_of_call
from stretto.ir.operations import Call
from stretto.passes.normalize.idioms.bodies import BODIES, LAYOUTS
from stretto.passes.normalize.idioms.reference import REFERENCE
from stretto.runtime.implementations import cpu_attention
from stretto.runtime.implementations.registry import KindFunction
from stretto.runtime.program.arguments import dtype_name
from stretto.runtime.program.records import Function, Kind, SlotType
from torch import Tensor

from .steps import assert_kept, misses, raised, step

CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
GENERATOR = torch.Generator().manual_seed(0)
QUERY, KEY, VALUE, GRAD = (torch.randn(2, 3, 5, 8, generator=GENERATOR, dtype=torch.float64) for _ in range(4))
MASK = torch.randn(2, 1, 5, 5, generator=GENERATOR, dtype=torch.float64)


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return CPU_ATTENTION(query, key, value, 0.0, True)[0]


def masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return CPU_ATTENTION(query, key, value, attn_mask=mask, scale=0.3)[0]


def test_attention_and_its_backward_are_raised() -> None:
    assert raised(step(causal, (QUERY, KEY, VALUE), (0, 1, 2))) == ["nn.attention", "nn.attention_backward"]


def test_values_are_kept_with_a_causal_mask() -> None:
    assert_kept(step(causal, (QUERY, KEY, VALUE), (0, 1, 2)), (QUERY, KEY, VALUE, GRAD))


def test_values_are_kept_with_a_mask_and_a_scale() -> None:
    assert_kept(step(masked, (QUERY, KEY, VALUE, MASK), (0, 1, 2)), (QUERY, KEY, VALUE, MASK, GRAD))


def test_a_gradient_that_is_not_needed_is_no_result() -> None:
    assert_kept(step(causal, (QUERY, KEY, VALUE), (1,)), (QUERY, KEY, VALUE, GRAD))


def test_dropout_inside_attention_is_left() -> None:
    def dropping(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        probability = 0.1 if query.is_meta else 0.0
        return CPU_ATTENTION(query, key, value, probability, True)[0]

    expected = "attention left as it is: it drops attention weights with probability 0.1"
    assert misses(step(dropping, (QUERY, KEY, VALUE), (0, 1, 2))) == [expected, expected]


@pytest.mark.parametrize(("mask", "is_causal", "scale"), [(None, True, None), (MASK, False, 0.3), (None, False, None)])
def test_the_kernel_computes_what_the_reference_says(mask: Tensor | None, is_causal: bool, scale: float | None) -> None:
    kept = REFERENCE["nn.attention"](QUERY, KEY, VALUE, mask, is_causal, scale)
    _agree(kept, on_cpu("nn.attention", QUERY, KEY, VALUE, mask, is_causal, scale))
    backward = (GRAD, QUERY, KEY, VALUE, *kept, mask, is_causal, scale)
    _agree(REFERENCE["nn.attention_backward"](*backward), on_cpu("nn.attention_backward", *backward))


def test_heads_of_queries_may_share_those_of_keys() -> None:
    key, value = KEY[:, :1], VALUE[:, :1]
    args = (QUERY, key, value, MASK, False, None)
    kept = REFERENCE["nn.attention"](*args)
    _agree(kept, on_cpu("nn.attention", *args), evaluate("nn.attention", (*args, None, None)))
    backward, name = (GRAD, QUERY, key, value, *kept, *args[3:]), "nn.attention_backward"
    grads = REFERENCE[name](*backward)
    _agree(grads, on_cpu(name, *backward), evaluate(name, (*backward, None, None)))
    assert [each.shape for each in grads] == [QUERY.shape, key.shape, key.shape]


@pytest.mark.parametrize("by_token", [True, False])
def test_the_body_gives_results_in_the_memory_layout_of_the_kernel(by_token: bool) -> None:
    query, key, value, grad = (t.float() for t in (QUERY, KEY, VALUE, GRAD))
    if by_token:
        query, key, value, grad = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (query, key, value, grad))
    args = (query, key, value, None, True, None)
    out, logsumexp = on_cpu("nn.attention", *args)
    assert out.stride() == BODIES["nn.attention"](*args)[0].stride()
    backward = (grad, query, key, value, out, logsumexp, *args[3:])
    bodies = BODIES["nn.attention_backward"](*backward)
    kernels = on_cpu("nn.attention_backward", *backward)
    assert [each.stride() for each in kernels] == [each.stride() for each in bodies]
    for name, given in (("nn.attention", args), ("nn.attention_backward", backward)):
        on_meta = [each.to("meta") if isinstance(each, Tensor) else each for each in given]
        found = [(each.shape, each.stride(), each.dtype) for each in LAYOUTS[name](*on_meta)]
        assert found == [(each.shape, each.stride(), each.dtype) for each in BODIES[name](*given)]


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize(("q_offset", "k_offset"), [(3, None), (None, 2), (7, 9)])
def test_positions_count_from_offsets_and_a_query_that_sees_no_key_is_0(
    mask: Tensor | None, q_offset: int | None, k_offset: int | None
) -> None:
    offsets = tuple(None if offset is None else torch.tensor(offset) for offset in (q_offset, k_offset))
    args = (QUERY, KEY, VALUE, mask, True, 0.3, *offsets)
    out, logsumexp = REFERENCE["nn.attention"](*args)
    _agree((out, logsumexp), on_cpu("nn.attention", *args), evaluate("nn.attention", args))
    blind = (k_offset or 0) - (q_offset or 0)
    first = max(0, blind)
    assert (out[:, :, :first] == 0).all() and (logsumexp[:, :, :first] == float("-inf")).all()
    assert (out[:, :, first:] != 0).all()
    backward = (GRAD, QUERY, KEY, VALUE, out, logsumexp, *args[3:])
    name = "nn.attention_backward"
    grads = REFERENCE[name](*backward)
    _agree(grads, on_cpu(name, *backward), evaluate(name, backward))
    leaves = [tensor.clone().requires_grad_() for tensor in (QUERY, KEY, VALUE)]
    queries, keys = (torch.arange(5) + (offset or 0) for offset in (q_offset, k_offset))
    hidden = torch.zeros(5, 5, dtype=torch.float64).masked_fill(keys > queries[:, None], float("-inf"))
    scores = leaves[0] @ leaves[1].mT * 0.3 + (hidden if mask is None else hidden + mask)
    (scores[:, :, first:].softmax(-1) @ leaves[2]).backward(GRAD[:, :, first:])
    _agree(grads, tuple(leaf.grad for leaf in leaves))


def on_cpu(name: str, *args: Any) -> tuple[Tensor, ...]:
    """What the CPU's kernel gives for an idiom."""
    said = kind_of_call(Call(name, args))
    tensors = [each for each in args if isinstance(each, Tensor)]
    slots = tuple(range(len(tensors)))
    types = tuple(SlotType(dtype_name(each.dtype), tuple(each.shape)) for each in tensors)
    kind = Kind(said.name, said.operands, said.results, said.attributes)
    kernel = cpu_attention.FORWARD.build(KindFunction("f", kind, Function(len(slots), slots, (), ()), types), "cpu")
    assert kernel is not None
    return kernel(*tensors)


def _agree(*results: Any) -> None:
    for others in zip(*results, strict=True):
        for other in others[1:]:
            torch.testing.assert_close(other, others[0])
