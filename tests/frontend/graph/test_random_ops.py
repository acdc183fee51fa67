"""Ops that draw keep torch's distributions and formulas, and the joint graph draws what the reference draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import CaptureError, InputKind, Mode
from stretto.frontend.graph.random_op import RANDOM
from stretto.runtime.philox import Part, RngState, draw
from stretto.runtime.program import reference as runtime_reference
from stretto.runtime.program.reference import Draw, draw_of_program, run_reference
from stretto.runtime.program.reference_records import Reference
from torch import Tensor, nn
from torch.nn import functional as F

from ...subsets import only
from ..running import graph_arguments

N = 1 << 14
STATE = RngState(seed=1, step=2).tensor()


class Noisy(nn.Module):
    """`body` of one input, with a parameter so that there is a gradient."""

    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x * self.scale)


def drawn(body: Callable[[Tensor], Tensor], x: Tensor, draw_whole: Draw = draw_of_program) -> Tensor:
    """What the reference of a forward computes."""
    model = Noisy(body)
    actual = Reference.from_json(capture(model, (x,), {}, mode=Mode.INFER).reference)
    values = {("parameter", "scale"): torch.ones(()), ("random", "random state"): STATE}
    [result], _ = run_reference(actual, values, [x], draw_whole=draw_whole)
    return result


def zeros(like: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(N, dtype=like)


DISTRIBUTIONS: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "rand": (lambda x: x + torch.rand(N), 1 / 2, 1 / 12),
    "rand_like": (lambda x: torch.rand_like(x), 1 / 2, 1 / 12),
    "randn": (lambda x: x + torch.randn(N), 0, 1),
    "randn_like": (lambda x: torch.randn_like(x), 0, 1),
    "normal_": (lambda x: torch.empty_like(x).normal_(3, 2), 3, 4),
    "normal of a size": (lambda x: x + torch.normal(3.0, 2.0, (N,)), 3, 4),
    "normal of tensors": (lambda x: torch.normal(x + 1, x + 3), 1, 9),
    "uniform_": (lambda x: torch.empty_like(x).uniform_(-1, 3), 1, 16 / 12),
    "exponential_": (lambda x: torch.empty_like(x).exponential_(4), 1 / 4, 1 / 16),
    "bernoulli_": (lambda x: torch.empty_like(x).bernoulli_(0.2), 0.2, 0.16),
    "bernoulli of a tensor": (lambda x: torch.bernoulli(x + 0.2), 0.2, 0.16),
    "bernoulli with a probability": (lambda x: torch.bernoulli(x, 0.2), 0.2, 0.16),
    "randint": (lambda x: x + torch.randint(2, 12, (N,)), 6.5, 99 / 12),
    "randint_like": (lambda x: torch.randint_like(x, 10), 4.5, 99 / 12),
    "dropout": (lambda x: F.dropout(x + 1, 0.2), 1, 0.25),
    "dropout in place": (lambda x: F.dropout(x + 1, 0.2, inplace=True), 1, 0.25),
    "alpha dropout": (lambda x: F.alpha_dropout(torch.randn_like(x), 0.2), 0, 1),
    "half precision": (lambda x: torch.rand_like(x.half()).float(), 1 / 2, 1 / 12),
    "brain floats": (lambda x: torch.rand_like(x.bfloat16()).float(), 1 / 2, 1 / 12),
}
"""Name: what is drawn, the mean and the variance of its elements."""


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_an_op_has_the_mean_and_variance_of_torchs(name: str) -> None:
    body, mean, variance = DISTRIBUTIONS[name]
    actual = drawn(body, zeros()).double()
    assert actual.shape == (N,)
    assert abs(float(actual.mean()) - mean) < 5 * math.sqrt(variance / N) + 2e-3
    assert float(actual.var()) == pytest.approx(variance, rel=0.1)


MOST = math.sqrt(2 * 32 * math.log(2))
"""The largest normal number that words of 32 bits give."""
RANGES: dict[str, tuple[float, float]] = {
    "rand": (0, 1), "rand_like": (0, 1), "randn": (-MOST, MOST), "randn_like": (-MOST, MOST),
    "normal_": (3 - 2 * MOST, 3 + 2 * MOST), "normal of a size": (3 - 2 * MOST, 3 + 2 * MOST),
    "normal of tensors": (1 - 3 * MOST, 1 + 3 * MOST), "uniform_": (-1, 3), "exponential_": (0, 32 * math.log(2) / 4),
    "bernoulli_": (0, 1), "bernoulli of a tensor": (0, 1), "bernoulli with a probability": (0, 1), "randint": (2, 11),
    "randint_like": (0, 9), "dropout": (0, 1.25), "dropout in place": (0, 1.25), "alpha dropout": (-8, 8),
    "half precision": (0, 1), "brain floats": (0, 1),
}  # fmt: skip
"""Name in DISTRIBUTIONS: the least and the largest element that any word may give."""
UPPER_END_EXCLUDED = ("rand", "rand_like", "uniform_", "half precision", "brain floats")
LAST_WORD = (1 << 32) - 1


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_first_and_the_last_word_give_finite_numbers_inside_the_range(name: str) -> None:
    body, (least, most) = DISTRIBUTIONS[name][0], RANGES[name]
    for first, others in itertools.product((0, LAST_WORD), repeat=2):
        [value] = drawn(body, torch.zeros(N), words(first, others)).double().unique().tolist()
        assert math.isfinite(value) and least - 1e-6 <= value <= most + 1e-5, (first, others)
        assert value < most or name not in UPPER_END_EXCLUDED, (first, others)


def words(first: int, others: int) -> Draw:
    """Draws the same word everywhere: one in the forward's first random op, one in its others."""

    def draw_whole(_state: Tensor, op_index: int, shape: Sequence[int], below: int | None) -> Tensor:
        word = first if op_index == 0 else others
        return torch.full(tuple(shape), word if below is None else word < below)

    return draw_whole


def test_an_exponential_number_is_never_0_as_models_divide_by_it() -> None:
    for word in (0, LAST_WORD - 127, LAST_WORD):
        value = drawn(lambda x: torch.empty_like(x).exponential_(4), torch.zeros(2), words(word, word))
        assert float(value.min()) > 0 and bool((0 / value == 0).all())


@pytest.mark.parametrize("word", [0, LAST_WORD])
def test_what_has_probability_0_never_happens_and_what_has_1_always(word: int) -> None:
    draw_whole = words(word, word)
    for probability in (0.0, 1.0):
        for body in (
            lambda x, p=probability: torch.empty_like(x).bernoulli_(p),
            lambda x, p=probability: torch.bernoulli(x + p),
            lambda x, p=probability: torch.bernoulli(x, p),
            lambda x, p=probability: F.dropout(x + 1, 1 - p),
        ):
            assert drawn(body, torch.zeros(2), draw_whole).tolist() == [probability] * 2


@pytest.mark.parametrize("word", [0, LAST_WORD])
def test_words_at_the_ends_draw_from_the_ends_of_a_range_and_keep_permutations(word: int) -> None:
    most = 1 << 31
    [value] = drawn(lambda x: torch.randint(0, most, (1,)) + x.long(), torch.zeros(1), words(word, word)).tolist()
    assert value == (0 if word == 0 else most - 1)
    order = drawn(lambda x: x + torch.randperm(5), torch.zeros(5), words(word, word))
    assert sorted(order.tolist()) == list(range(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_uniform_numbers_stay_below_1(dtype: torch.dtype) -> None:
    actual = drawn(lambda x: torch.rand_like(x.to(dtype)), zeros())
    assert actual.dtype is dtype and float(actual.min()) >= 0 and float(actual.max()) < 1


def test_integers_reach_both_ends_of_their_range_and_no_further() -> None:
    assert set(drawn(lambda x: x + torch.randint(-2, 3, (N,)), zeros()).tolist()) == {-2, -1, 0, 1, 2}


def test_a_permutation_holds_every_number_once() -> None:
    actual = drawn(lambda x: x + torch.randperm(N), zeros())
    assert sorted(actual.tolist()) == list(range(N)) and actual.tolist() != list(range(N))


def test_a_feature_dropout_drops_whole_features_of_an_example() -> None:
    actual = drawn(lambda x: F.dropout2d(x.view(16, 64, 4, 4) + 1, 0.25), torch.zeros(16 * 64 * 16))
    first = actual[:, :, :1, :1]
    assert torch.equal(actual, first.expand_as(actual)) and actual.unique().tolist() == pytest.approx([0, 4 / 3])
    assert 0.2 < float((first == 0).float().mean()) < 0.3


def test_alpha_dropout_sets_what_it_drops_to_one_value_and_scales_the_rest() -> None:
    x = torch.linspace(-1, 1, N)
    for body in (F.alpha_dropout, F.feature_alpha_dropout):
        actual = drawn(lambda x, body=body: body(x.view(-1, 1), 0.5, training=True), x).flatten()
        dropped = actual == actual.mode().values
        a = (1.7580993408473766**2 * 0.5 + 1) ** -0.5 * 0.5**-0.5
        torch.testing.assert_close(actual[~dropped], a * x[~dropped] + a * 0.5 * 1.7580993408473766)
        assert 0.45 < float(dropped.float().mean()) < 0.55


MASKS = {
    "none": lambda q: {},
    "causal": lambda q: {"is_causal": True},
    "of booleans": lambda q: {"attn_mask": torch.arange(6)[:, None] % 4 > torch.arange(5)},
    "of floats": lambda q: {
        "attn_mask": torch.arange(30.0).view(6, 5).sin().masked_fill(torch.arange(6)[:, None] == 2, -torch.inf)
    },
}


@pytest.mark.parametrize(
    ("mask", "grouped"),
    only(
        [("none", False), ("causal", True), ("of booleans", False), ("of floats", True)],
        product(MASKS, [False, True]),
    ),
)
def test_attention_that_drops_weights_is_attention_with_its_kept_ones_scaled(
    mask: str, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    keys = 6 if mask == "causal" else 5
    x = torch.randn(4 * 6 * 8 + 2 * 4 * keys * 8, dtype=torch.float64)
    heads = 2 if grouped else 4

    def body(x: Tensor, p: float = 0.5) -> Tensor:
        q, kv = x[: 4 * 6 * 8].view(1, 4, 6, 8), x[4 * 6 * 8 :].view(2, 4, keys, 8)[:, :heads]
        options = MASKS[mask](q)
        return F.scaled_dot_product_attention(q, kv[:1], kv[1:], dropout_p=p, scale=0.3, enable_gqa=grouped, **options)

    monkeypatch.setattr(runtime_reference, "draw", lambda *given: torch.ones_like(draw(*given)))
    torch.testing.assert_close(drawn(body, x), 2 * body(x, 0.0))
    monkeypatch.undo()
    dropped = drawn(body, x)
    assert not torch.allclose(dropped, 2 * body(x, 0.0)) and not torch.allclose(dropped, body(x, 0.0))


def test_the_backward_uses_the_mask_of_the_forward() -> None:
    model = Noisy(lambda x: F.dropout(x, 0.5).pow(2).sum())
    x = torch.randn(64)
    actual = capture(model, (x,), {}, mode=Mode.TRAIN)
    assert [item.kind for item in actual.inputs] == ["parameter", "input", "random", "tangent"]
    random_ops = actual.graph.graph.find_nodes(op="call_function", target=RANDOM)
    assert len(random_ops) == 1
    mask = draw(STATE, 0, Part.whole((64,)), 1 << 31)
    plain = replace(actual, inputs=tuple(item for item in actual.inputs if item.kind is not InputKind.RANDOM))
    scale, given, tangent = graph_arguments(plain, model, [x], {})
    mine = RunDraws(actual.graph).run(scale, given, STATE, tangent)
    assert mine[0].item() == pytest.approx(float((x * mask * 2).pow(2).sum()), rel=1e-5)
    assert mine[1].item() == pytest.approx(2 * mine[0].item(), rel=1e-5)


class RunDraws(torch.fx.Interpreter):
    """Runs a captured graph that draws."""

    def call_function(self, target: object, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        if target is RANDOM:
            state, like, size, number, below = args
            return draw(state, number, Part.whole(size or like.shape), below)  # type: ignore[arg-type, attr-defined]
        return super().call_function(target, args, kwargs)  # type: ignore[arg-type]


def test_random_ops_are_numbered_in_order_and_a_dropout_of_0_is_not_one() -> None:
    def body(x: Tensor) -> Tensor:
        return F.dropout(F.dropout(F.dropout(x, 0.0), 0.1) + torch.rand(4), 0.2, training=False) * torch.rand_like(x)

    actual = capture(Noisy(body), (torch.randn(4),), {}, mode=Mode.INFER)
    random_ops = actual.graph.graph.find_nodes(op="call_function", target=RANDOM)
    assert [node.args[3] for node in random_ops] == [0, 1, 2]


def test_numbers_of_a_generator_are_refused() -> None:
    generator = torch.Generator()
    with pytest.raises(CaptureError) as caught:
        capture(Noisy(lambda x: x * torch.rand(4, generator=generator)), (torch.randn(4),), {}, mode=Mode.INFER)
    assert caught.value.code == "E0217" and "without a generator" in caught.value.expected
