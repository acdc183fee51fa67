"""Faults of values that random numbers seldom are: hidden rows, zeros, indices of padding; and of sums in bfloat16."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from stretto.frontend.graph import complex_pairs
from stretto.passes.partition import partition_tensors, vocabulary
from stretto.passes.pipelining import average_microbatches
from stretto.runtime.implementations import cpu_attention
from torch import Tensor

from .finding import Finder
from .source_faults import Plant, SourceFault, entry, value
from .users_models import Case

aten = torch.ops.aten
_BACKWARD = vocabulary._embedding_backward


def fault(where: str, plant: Plant, case: Case) -> SourceFault:
    return SourceFault(where, plant, Finder.COMPILE_CHECK, case)


def direction_of_zero(write: Any, x: Any) -> Any:
    """0 / 0 for 0."""
    length, _ = complex_pairs._length(write, x)
    return tuple(write(aten.div.Tensor, part, length) for part in x)


def gradient_of_padding(sharded: Any, call: Any, types: Any) -> Any:
    grad, indices, count, _, by_frequency = call.args
    return _BACKWARD(sharded, replace(call, args=(grad, indices, count, -1, by_frequency)), types)


def without_a_key(names: tuple[str, ...], causal: bool, scale: float | None, *given: Tensor) -> Any:
    """A query that sees no key: exp(-inf - -inf)."""
    tensors = dict(zip(names, given, strict=True))
    mask, causal = cpu_attention._hidden(tensors, causal)
    operands = [tensors[name] for name in ("grad", "query", "key", "value", "out", "logsumexp")]
    return aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
        *operands, 0.0, causal, attn_mask=mask, scale=scale
    )


VALUE_FAULTS = {
    "the gradient of a magnitude is 0 / 0 at 0": fault(
        "frontend/graph/complex_pairs: _direction",
        entry(complex_pairs._RULES, aten.sgn.default, direction_of_zero),
        Case("magnitudes", "dp", ()),
    ),
    "in a sharded vocabulary the index of padding gets a gradient": fault(
        "passes/partition/vocabulary: _embedding_backward",
        entry(
            partition_tensors._LOWERINGS,
            "aten.embedding_dense_backward.default",
            vocabulary.in_table(gradient_of_padding),
        ),
        Case("masked", "words", ()),
    ),
    "a query that sees no key has a gradient that is no number": fault(
        "runtime/implementations/cpu_attention: _backward",
        value(cpu_attention, "_backward", without_a_key),
        Case("masked", "context", ()),
    ),
    "microbatches are summed before the cast to the dtype of reductions": fault(
        "passes/pipelining/average_microbatches: _is_summed_before_cast",
        value(average_microbatches._Average, "_is_summed_before_cast", lambda average, cast: True),
        Case("table", "alone in short", ()),
    ),
}
