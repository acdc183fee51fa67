"""Pooling, padding and resampling of images that are cut on height, width or depth.

Each op runs on chunk and halo with its own padding left out on cut dims. Its backward needs no image, only its shape:
it runs on zeros, and what it gives for the halo travels back. The indices of max-pooling count in the whole plane
outside, and in what the rank reads inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, prod
from typing import Any

from ....ir.bindings import Value
from ....ir.operations import Call
from ....ir.types import TensorType, from_mlir
from ...sharding.rules.plane_windows import plane_dims
from ..emitter import LocalEmitter, Shards, Types
from .cut_dims import Arguments, CutDims, typed
from .exchange import Exchange


def _forward(emitter: LocalEmitter, call: Call, cuts: Sequence[Shards], types: Types) -> list[Value | None]:
    arguments, dims, [out] = Arguments(call), CutDims.of(emitter, cuts), types
    assert out is not None
    made = dims.made_type(out)
    changed = _on_cut_dims(arguments, dims, made.shape) | {"self": dims.read(arguments["self"])}
    [result] = arguments.built(emitter, [made], changed)
    return [dims.kept(result, out)]


def _backward(emitter: LocalEmitter, call: Call, cuts: Sequence[Shards], types: Types) -> list[Value | None]:
    arguments, dims, [of_input] = Arguments(call), CutDims.of(emitter, cuts), types
    assert of_input is not None
    gradient, shape = dims.unkept(arguments["grad_output"]), dims.read_shape(of_input.shape)
    changed = _on_cut_dims(arguments, dims, from_mlir(gradient.type).shape)
    changed |= {"self": dims.zeros(shape, gradient)} if "self" in arguments.values else {"input_size": list(shape)}
    changed |= {"grad_output": gradient}
    [whole] = arguments.built(emitter, [TensorType(of_input.dtype, shape)], changed)
    return [dims.sent_back(whole, of_input)]


def _max_pool(emitter: LocalEmitter, call: Call, cuts: Sequence[Shards], types: Types) -> list[Value | None]:
    arguments, dims, [out, indices] = Arguments(call), CutDims.of(emitter, cuts, -inf), types
    assert out is not None and indices is not None
    image = from_mlir(arguments["self"].type)
    changed = _on_cut_dims(arguments, dims, out.shape) | {"self": dims.read(arguments["self"])}
    made, places = arguments.built(emitter, [out, TensorType(indices.dtype, indices.shape)], changed)
    return [made, typed(_Planes(dims, call.name, image.shape).outside(places), indices)]


def _max_pool_backward(emitter: LocalEmitter, call: Call, cuts: Sequence[Shards], types: Types) -> list[Value | None]:
    arguments, dims, [of_input] = Arguments(call), CutDims.of(emitter, cuts), types
    assert of_input is not None
    gradient, shape = arguments["grad_output"], dims.read_shape(of_input.shape)
    changed = _on_cut_dims(arguments, dims, from_mlir(gradient.type).shape)
    changed |= {"self": dims.zeros(shape, gradient)}
    changed |= {"indices": _Planes(dims, call.name, of_input.shape).inside(arguments["indices"])}
    [whole] = arguments.built(emitter, [TensorType(of_input.dtype, shape)], changed)
    return [dims.sent_back(whole, of_input)]


class _Planes:
    """The planes of an image: places in them as one number, in the whole plane and in what the rank reads."""

    def __init__(self, dims: CutDims, op: str, chunk: tuple[int, ...]) -> None:
        self.emitter, spaces = dims.emitter, plane_dims(op)
        self.first = len(chunk) - spaces
        self.cuts = {cut.dim: cut for cut in dims.cuts}
        self.read = dims.read_shape(chunk)[self.first :]
        whole = {cut.dim: cut.window.inputs for cut in dims.cuts}
        self.whole = tuple(whole.get(d, chunk[d]) for d in range(self.first, len(chunk)))

    def outside(self, places: Value) -> Value:
        """Places in what the rank reads, as places in the whole plane."""
        return self._numbered(places, self.read, self.whole, "aten.add")

    def inside(self, places: Value) -> Value:
        """The other way about. Where a rank has padding, it gets some place: the gradient there is zero."""
        moved = self._numbered(places, self.whole, self.read, "aten.sub")
        return self.emitter.like("aten.clamp.default", moved, 0, prod(self.read) - 1)

    def _numbered(self, places: Value, given: Sequence[int], wanted: Sequence[int], move: str) -> Value:
        e, total = self.emitter, None
        for space, extent in enumerate(given):
            inner = prod(given[space + 1 :])
            place = e.like("aten.floor_divide.Scalar", places, inner) if inner > 1 else places
            place = e.like("aten.remainder.Scalar", place, extent) if space else place
            cut = self.cuts.get(self.first + space)
            if cut is not None:
                place = e.like(f"{move}.Scalar", place, cut.halo.reads.start)
                place = e.like(f"{move}.Tensor", place, Exchange(e, cut).scaled(cut.halo.reads.drift))
            scaled = e.like("aten.mul.Scalar", place, prod(wanted[space + 1 :]))
            total = scaled if total is None else e.like("aten.add.Tensor", total, scaled)
        return total


def _on_cut_dims(arguments: Arguments, dims: CutDims, made: tuple[int, ...]) -> dict[str, Any]:
    """What the op's sizes are for the rank: no padding on cut dims, and the extents of what it makes."""
    spaces, rank = plane_dims(arguments.name), len(made)
    if "output_size" in arguments.values:
        return {"output_size": list(made[rank - spaces :])}
    if "padding" not in arguments.values:
        return {}
    if "_pool" in arguments.name:
        return {"padding": arguments.at("padding", {cut.dim: 0 for cut in dims.cuts}, spaces, rank)}
    pads = list(arguments["padding"])
    for cut in dims.cuts:
        last_first = 2 * (rank - 1 - cut.dim)
        pads[last_first : last_first + 2] = 0, 0
    return {"padding": pads}


def _pad(emitter: LocalEmitter, call: Call, cuts: Sequence[Shards], types: Types) -> list[Value | None]:
    arguments, [out] = Arguments(call), types
    assert out is not None
    dims, pads, rank = CutDims.of(emitter, cuts, float(arguments["value"] or 0)), list(arguments["pad"]), len(out.shape)
    read, cut_dims = dims.read(arguments["self"]), {cut.dim for cut in dims.cuts}
    left = [0 if rank - 1 - i // 2 in cut_dims else amount for i, amount in enumerate(pads)]
    if not any(left):
        return [typed(read, out)]
    return [*arguments.built(emitter, [out], {"self": read, "pad": left})]


_Lowering = Callable[[LocalEmitter, Call, Sequence[Shards], Types], list[Value | None]]
_MAX_POOLS = ("max_pool2d_with_indices", "max_pool3d_with_indices")
_FORWARDS = (
    "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
    *(f"{name}{spaces}d" for name in ("upsample_nearest", "_upsample_nearest_exact") for spaces in (1, 2, 3)),
    *(f"{name}_pad{spaces}d" for name in ("reflection", "replication") for spaces in (1, 2, 3)),
)  # fmt: skip

LOWERINGS: Mapping[str, _Lowering] = {
    **{f"aten.{name}.default": _forward for name in _FORWARDS},
    **{f"aten.{name}_backward.default": _backward for name in _FORWARDS},
    **{f"aten.{name}.default": _max_pool for name in _MAX_POOLS},
    **{f"aten.{name}_backward.default": _max_pool_backward for name in _MAX_POOLS},
    "aten.constant_pad_nd.default": _pad,
}
"""What a rank computes in place of each op."""
