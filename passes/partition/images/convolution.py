"""Convolution of an image that is cut on height, width or depth: each rank computes its outputs from chunk and halo.

In the backward a rank reads its halo again, and gets the gradient of chunk and halo. The halo's part travels back. The
gradients of weight and bias are those of the rank's own outputs, partial sums over the axes.

A transposed convolution makes more than the rank's outputs of what it reads; the rest is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....ir.bindings import Value
from ....ir.operations import Call
from ....ir.types import TensorType, from_mlir
from ..emitter import LocalEmitter, Shards, Types
from .cut_dims import AGAIN, Arguments, CutDims


def _forward(emitter: LocalEmitter, call: Call, cuts: Sequence[Shards], types: Types) -> list[Value | None]:
    arguments, dims, [out] = Arguments(call), CutDims.of(emitter, cuts), types
    assert out is not None
    changed = {"input": dims.read(arguments["input"]), **_paddings(arguments, cuts)}
    [made] = arguments.built(emitter, [dims.made_type(out)], changed)
    return [dims.kept(made, out)]


def _backward(emitter: LocalEmitter, call: Call, cuts: Sequence[Shards], types: Types) -> list[Value | None]:
    arguments, dims = Arguments(call), CutDims.of(emitter, cuts)
    of_input, of_weight, of_bias = types
    image = from_mlir(arguments["input"].type)
    shape = dims.read_shape(image.shape)
    needs_image = of_weight is not None
    read = dims.read(arguments["input"], AGAIN) if needs_image else dims.zeros(shape, arguments["input"])
    whole = None if of_input is None else TensorType(of_input.dtype, shape)
    gradient_of_made = dims.unkept(arguments["grad_output"])
    changed = {"grad_output": gradient_of_made, "input": read, **_paddings(arguments, cuts)}
    gradient, *others = arguments.built(emitter, [whole, of_weight, of_bias], changed)
    own = None if of_input is None else dims.sent_back(gradient, of_input)
    kept = [None if t is None else v for v, t in zip(others, (of_weight, of_bias), strict=True)]
    return [own, *kept]


def _paddings(arguments: Arguments, cuts: Sequence[Shards]) -> dict[str, list[int]]:
    """Nothing is padded on a cut dim: what the op reads there has its padding."""
    rank, none = len(from_mlir(arguments["input"].type).shape), {cut.dim: 0 for cut in cuts}
    return {name: arguments.at(name, none, rank - 2, rank) for name in ("padding", "output_padding")}


LOWERINGS: dict[str, Callable[[LocalEmitter, Call, Sequence[Shards], Types], list[Value | None]]] = {
    "aten.convolution.default": _forward,
    "aten.convolution_backward.default": _backward,
}
"""What a rank computes in place of each op."""
