"""What crosses ranks is what Megatron-LM sends (arXiv:1909.08053, section 3; with sequence parallelism,
arXiv:2205.05198, section 4.2): counted in the final IR of models of two layers.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest

from ..subsets import only
from .checking import compiled
from .models import MODELS, Case, Size, plan
from .traffic import Message, kinds, messages

LAYERS = 2
SIZE = Size(vocab=44, width=16, heads=4, head=4, inner=24, layers=LAYERS)
"""No extent of an activation is the vocabulary's, or half of it."""
TOKENS = "shard activations tokens over tp"
VOCABULARY = {44, 22}
EACH_MODEL = pytest.mark.parametrize("model", only(["llama", "gpt2"], MODELS))
LAYERED = pytest.mark.parametrize("model", only(["gpt2"], ["llama", "gpt", "gpt2"]))
"""Decoders; GPT-2's queries, keys and values are blocks of one projection."""


@cache
def _case(model: str) -> Case:
    return MODELS[model](SIZE)


@cache
def _sent(model: str, mesh: str, *lines: str) -> tuple[Message, ...]:
    return tuple(messages(compiled(_case(model), plan(model, mesh, *lines))))


def _layers(sent: tuple[Message, ...], *, backward: bool) -> list[Message]:
    return [m for m in sent if m.function != "main" and m.backward == backward]


@LAYERED
def test_tensor_parallel_layers_reduce_twice_forward_and_twice_backward(model: str) -> None:
    sent = _sent(model, "tp=2")
    for backward in (False, True):
        layers = _layers(sent, backward=backward)
        assert kinds(layers) == {"all_reduce": 2 * LAYERS}
        assert {m.operand_shape for m in layers} == {(SIZE.batch, SIZE.seq, SIZE.width)}


@EACH_MODEL
def test_outside_the_layers_only_embedding_head_and_loss_communicate(model: str) -> None:
    main = [m for m in _sent(model, "tp=2") if m.function == "main"]
    activation, rows = (SIZE.batch, SIZE.seq, SIZE.width), SIZE.batch * SIZE.seq
    assert kinds(main) == {"all_reduce": 5}
    assert sorted(m.operand_shape for m in main if not m.backward) == [activation, (rows,), (rows,), (rows, 1)]
    assert [m.operand_shape for m in main if m.backward] == [activation]


@LAYERED
def test_sequence_parallel_layers_gather_and_scatter_twice_each_way(model: str) -> None:
    sent = _sent(model, "tp=2", TOKENS)
    for backward in (False, True):
        layers = _layers(sent, backward=backward)
        assert kinds(layers) == {"all_gather": 2 * LAYERS, "reduce_scatter": 2 * LAYERS}
        whole, part = (SIZE.batch, SIZE.seq, SIZE.width), (SIZE.batch, SIZE.seq // 2, SIZE.width)
        assert {(m.operand_shape, m.result_shape) for m in layers} == {(part, whole), (whole, part)}


@EACH_MODEL
def test_sequence_parallelism_all_reduces_no_activation(model: str) -> None:
    sent = _sent(model, "tp=2", TOKENS)
    rows = SIZE.batch * SIZE.seq
    reduced = {m.operand_shape for m in sent if m.kind == "all_reduce"}
    norms_and_positions = {(SIZE.width,), (SIZE.seq, SIZE.width)}
    assert reduced - norms_and_positions == {(rows,), (rows, 1)}, "what the loss reduces, one number a token"


@EACH_MODEL
@pytest.mark.parametrize(
    ("mesh", "more"),
    only([("tp=2", ""), ("dp=2, tp=2", TOKENS)], product(["tp=2", "dp=2, tp=2"], ["", TOKENS])),
)
def test_nothing_of_the_vocabulary_s_size_crosses_a_tensor_parallel_group(model: str, mesh: str, more: str) -> None:
    sent = [m for m in _sent(model, mesh, *filter(None, [more])) if "tp" in m.axes]
    assert sent
    assert not [m for m in sent if VOCABULARY & {*m.operand_shape, *m.result_shape}]


@EACH_MODEL
def test_data_parallelism_reduces_each_gradient_once_and_the_loss(model: str) -> None:
    sent = _sent(model, "dp=2")
    trained = list(_case(model).model.parameters())
    assert kinds(sent) == {"all_reduce": len(trained) + 2}
    assert sorted(m.operand_shape for m in sent if m.backward) == sorted(tuple(message.shape) for message in trained)
    assert [m.operand_shape for m in sent if not m.backward] == [(), ()], "the sum of the losses, and their count"


@EACH_MODEL
def test_a_gradient_that_two_axes_leave_partial_is_reduced_over_both_at_once(model: str) -> None:
    sent = _sent(model, "pod=2, dp=2, tp=2", "shard inputs batch over pod, dp")
    backward = [m for m in sent if m.backward and m.function == "main" and "dp" in m.axes]
    trained = list(_case(model).model.parameters())
    assert {m.axes for m in backward} == {("pod", "dp")}
    assert len(backward) == len(trained)


@EACH_MODEL
def test_composed_plans_send_within_layers_what_tensor_parallelism_alone_sends(model: str) -> None:
    alone, composed = _sent(model, "tp=2", TOKENS), _sent(model, "dp=2, tp=2", TOKENS)
    for backward in (False, True):
        assert kinds(_layers(alone, backward=backward)) == kinds(_layers(composed, backward=backward))
    assert {m.axes for m in _layers(composed, backward=True)} == {("tp",)}


def test_few_tokens_move_instead_of_gradients_of_matrices() -> None:
    """A rank reads all tokens for its columns of a weight's gradient: the sum of whole gradients would be larger."""
    few = Size(batch=1, seq=4, vocab=44, width=64, heads=4, head=16, inner=192, layers=2)
    sent = messages(compiled(MODELS["llama"](few), plan("llama", "tp=2", TOKENS)))
    summed = [m.operand_shape for m in sent if m.backward and m.kind in ("all_reduce", "reduce_scatter")]
    assert [shape for shape in summed if len(shape) == 2 and few.seq not in shape] == []
