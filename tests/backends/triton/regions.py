"""Regions that models have, on small uneven shapes, with inputs: by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from random_regions import RegionBuilder
from stretto.backends.triton.region import Region
from stretto.runtime.program.arguments import Slot
from torch import Tensor

Case = tuple[Region, list[Tensor]]


def rms_norm(rows: int = 15, columns: int = 37) -> Case:
    """As Hugging Face's models write it: in float32, of 16-bit activations."""
    b = RegionBuilder()
    x = b.input(torch.randn(3, rows // 3, columns).bfloat16())
    weight = b.input(torch.randn(columns).bfloat16())
    x32 = Slot(b.call("_to_copy", Slot(x), dtype=torch.float32))
    mean = b.call("mean.dim", Slot(b.call("mul.Tensor", x32, x32)), [-1], True)
    scale = b.call("rsqrt", Slot(b.call("add.Scalar", Slot(mean), 1e-6)))
    normal = b.call("_to_copy", Slot(b.call("mul.Tensor", x32, Slot(scale))), dtype=torch.bfloat16)
    return b.region([b.call("mul.Tensor", Slot(normal), Slot(weight))])


def rms_norm_of_long_rows() -> Case:
    """Rows that no block holds: one loop for the mean, one for the result."""
    return rms_norm(rows=3, columns=9001)


def rms_norm_backward() -> Case:
    """The gradient of x, and the product that the weight's gradient sums over rows."""
    b = RegionBuilder()
    shape = (2, 5, 33)
    gradient, x = b.input(torch.randn(shape)), b.input(torch.randn(shape))
    scale, weight = b.input(torch.rand(2, 5, 1) + 0.5), b.input(torch.randn(33))
    weighted = b.call("mul.Tensor", Slot(gradient), Slot(weight))
    normal = b.call("mul.Tensor", Slot(x), Slot(scale))
    mean = b.call("mean.dim", Slot(b.call("mul.Tensor", Slot(weighted), Slot(normal))), [-1], True)
    centred = b.call("sub.Tensor", Slot(weighted), Slot(b.call("mul.Tensor", Slot(normal), Slot(mean))))
    return b.region(
        [b.call("mul.Tensor", Slot(centred), Slot(scale)), b.call("mul.Tensor", Slot(gradient), Slot(normal))]
    )


def rotary() -> Case:
    """x cos + rotate_half(x) sin on (batch, heads, tokens, dim), behind the transposition of heads."""
    b = RegionBuilder()
    projected = b.input(torch.randn(2, 7, 3 * 10).bfloat16())
    cos, sin = b.input(torch.randn(1, 7, 10)), b.input(torch.randn(1, 7, 10))
    x = Slot(b.call("transpose.int", Slot(b.call("view", Slot(projected), [2, 7, 3, 10])), 1, 2))
    first, second = b.call("slice.Tensor", x, 3, 0, 5), b.call("slice.Tensor", x, 3, 5, 2**63 - 1)
    turned = b.call("cat", [Slot(b.call("neg", Slot(second))), Slot(first)], -1)
    straight = b.call("mul.Tensor", x, Slot(b.call("unsqueeze", Slot(cos), 1)))
    across = b.call("mul.Tensor", Slot(turned), Slot(b.call("unsqueeze", Slot(sin), 1)))
    return b.region([b.call("add.Tensor", Slot(straight), Slot(across))])


def cross_entropy(columns: int = 101) -> Case:
    """The loss of each row and its logarithm of the sum, with rows of a label that is ignored."""
    b = RegionBuilder()
    scores = b.input(torch.randn(6, columns).bfloat16())
    labels = b.input(torch.tensor([3, columns - 1, -100, 0, 7, 50]))
    x = Slot(b.call("_to_copy", Slot(scores), dtype=torch.float32))
    largest = b.call("amax", x, [-1], True)
    total = b.call("sum.dim_IntList", Slot(b.call("exp", Slot(b.call("sub.Tensor", x, Slot(largest))))), [-1], True)
    logarithm = Slot(b.call("add.Tensor", Slot(b.call("log", Slot(total))), Slot(largest)))
    kept = Slot(b.call("ne.Scalar", Slot(labels), -100))
    safe = Slot(b.call("where.ScalarOther", kept, Slot(labels), 0))
    score = Slot(b.call("gather", x, -1, Slot(b.call("unsqueeze", safe, -1))))
    loss = b.call("squeeze.dim", Slot(b.call("sub.Tensor", logarithm, score)), -1)
    return b.region([b.call("where.ScalarOther", kept, Slot(loss), 0.0), logarithm.index])


def cross_entropy_of_a_large_vocabulary() -> Case:
    return cross_entropy(columns=10007)


def gated_activation_backward() -> Case:
    """Both gradients of silu(gate) * up."""
    b = RegionBuilder()
    gradient, gate, up = (b.input(torch.randn(5, 77).bfloat16()) for _ in range(3))
    through_gate = b.call("mul.Tensor", Slot(gradient), Slot(up))
    through_up = b.call("mul.Tensor", Slot(gradient), Slot(b.call("silu", Slot(gate))))
    return b.region([b.call("silu_backward", Slot(through_gate), Slot(gate)), through_up])


def adamw() -> Case:
    """The new parameter and both new moments, from masters in float64."""
    b = RegionBuilder()
    parameter, gradient, first, second = (b.input(torch.randn(1001, dtype=torch.float64).abs()) for _ in range(4))
    m = Slot(b.call("add.Tensor", Slot(b.call("mul.Scalar", Slot(first), 0.9)), Slot(gradient), alpha=0.1))
    squared = Slot(b.call("mul.Tensor", Slot(gradient), Slot(gradient)))
    v = Slot(b.call("add.Tensor", Slot(b.call("mul.Scalar", Slot(second), 0.99)), squared, alpha=0.01))
    step = b.call("div.Tensor", m, Slot(b.call("add.Scalar", Slot(b.call("sqrt", v)), 1e-8)))
    decayed = b.call("mul.Scalar", Slot(parameter), 0.999)
    return b.region([b.call("sub.Tensor", Slot(decayed), Slot(step), alpha=0.001), m.index, v.index])


def shifted_labels() -> Case:
    """Labels one token further, with the ignored label behind the last, and which of them count."""
    b = RegionBuilder()
    labels = b.input(torch.randint(0, 9, (3, 7)))
    padded = Slot(b.call("constant_pad_nd", Slot(labels), [0, 1], -100.0))
    shifted = b.call("slice.Tensor", padded, 1, 1, 2**63 - 1)
    kept = b.call("ne.Scalar", Slot(shifted), -100)
    return b.region([kept, b.call("where.ScalarOther", Slot(kept), Slot(shifted), 0)])


def half_of_three() -> Case:
    """The second half before the first, where the first is one element: its index along the dim has no term."""
    b = RegionBuilder()
    x = Slot(b.input(torch.randn(2, 3, 4)))
    first, second = b.call("slice.Tensor", x, 1, 0, 1), b.call("slice.Tensor", x, 1, 1, 3)
    turned = b.call("cat", [Slot(b.call("neg", Slot(second))), Slot(first)], 1)
    return b.region([b.call("sin", Slot(turned))])


def gradients_of_bias_and_scale() -> Case:
    """Sums over batch and tokens of a gradient that is used itself, too, in 16 bits, and of a product."""
    b = RegionBuilder()
    gradient, x = b.input(torch.randn(3, 50, 37).bfloat16()), b.input(torch.randn(3, 50, 37).bfloat16())
    scale = b.input(torch.rand(3, 50, 1) + 0.5)
    inner = b.call("mul.Tensor", Slot(gradient), Slot(b.call("sigmoid", Slot(x))))
    bias = b.call("sum.dim_IntList", Slot(inner), [0, 1], True, dtype=torch.float32)
    normal = b.call("mul.Tensor", Slot(x), Slot(scale))
    weight = b.call("sum.dim_IntList", Slot(b.call("mul.Tensor", Slot(normal), Slot(gradient))), [0, 1])
    return b.region([inner, b.call("reshape", Slot(bias), [37]), weight])


def largest_of_columns() -> Case:
    """The largest element of each column of a matrix, less which the column is exponentiated: read again behind."""
    b = RegionBuilder()
    x = b.input(torch.randn(70, 3, 11))
    largest = b.call("amax", Slot(b.call("mul.Scalar", Slot(x), 0.5)), [0], True)
    return b.region([b.call("exp", Slot(b.call("sub.Tensor", Slot(x), Slot(largest)))), largest])


CASES: Mapping[str, Callable[[], Case]] = {
    case.__name__: case
    for case in (
        rms_norm, rms_norm_of_long_rows, rms_norm_backward, rotary, cross_entropy, cross_entropy_of_a_large_vocabulary,
        gated_activation_backward, adamw, shifted_labels, half_of_three,
        gradients_of_bias_and_scale, largest_of_columns,
    )
}  # fmt: skip


def named(name: str) -> Case:
    """A case with the same inputs each time."""
    torch.manual_seed(len(name))
    return CASES[name]()
