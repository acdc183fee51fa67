"""Tensor types: torch dtypes as MLIR element types; placement and uneven extents as the type's encoding.

`tensor<12565x64xf32, {extents = array<i64: 50257, 64>, tp = "shard(0)"}>` is what every rank holds of a (50257, 64)
tensor whose first dim is sharded over "tp". At level `aten`, shapes are global and there is no `extents`. At level
`comm`, shapes are local and padded, and `extents` has the global shape if padding makes it differ.

A dim may be cut inside each of its blocks: `{comm.blocks = [array<i64: 1, 64, 16, 16>], tp = "shard(1)"}` gives a
rank a chunk of each of the blocks of 64, 16 and 16 elements of dim 1, one after the other.

Axes that shard the same dim nest in the mesh's order. Where they do not, each says its level, 0 for the outermost:
`{dp = "shard(0, 1)", tp = "shard(0, 0)"}` is cut by tp first, and each part by dp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

import torch

from ..diagnostics import StrettoError
from .bindings import Type, mlir
from .dialects.context import context
from .placement import AxisPlacement, Mesh, Partial, Placement, Reduce, Replicate, Shard, axes_size

_DTYPES: dict[torch.dtype, str] = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "ui8",
    torch.bool: "i1",
    torch.complex64: "complex<f32>",
    torch.complex128: "complex<f64>",
}
_BLOCKS = "comm.blocks"
"""The entry of an encoding for blocks; no axis has a dot in its name."""
_FROM_TEXT = {text: dtype for dtype, text in _DTYPES.items()}
_PLACEMENT = re.compile(rf"shard\((?P<dim>[0-9]+)(, (?P<level>[0-9]+))?\)|partial\((?P<reduce>{'|'.join(Reduce)})\)")


@dataclass(frozen=True)
class TensorType:
    """The type of a value: `shape` at its level; `extents` is the global shape if sharding is uneven."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    placement: tuple[tuple[str, AxisPlacement], ...] = ()
    """(axis, placement) of every axis that does not replicate, sorted by axis name."""
    extents: tuple[int, ...] | None = None
    nests: tuple[tuple[str, ...], ...] = ()
    """For each dim whose axes do not nest in the mesh's order, in order of dims: its axes, outermost first."""
    blocks: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """(dim, extents of its blocks) of the dims that are cut inside each block, by dim; `placement` does not say so."""

    def placed(self, placement: Placement, mesh: Mesh) -> TensorType:
        """The same tensor with another placement."""
        pairs = ((axis, placement.on(axis)) for axis, _ in sorted(mesh))
        not_replicated = tuple((axis, _unblocked(p)) for axis, p in pairs if not isinstance(p, Replicate))
        nested = (axes for axes in placement.dims if len(axes) > 1)
        nests = tuple(axes for axes in nested if axes != tuple(axis for axis, _ in mesh if axis in axes))
        return TensorType(self.dtype, self.shape, not_replicated, self.extents, nests, placement.blocks)

    def placement_on(self, mesh: Mesh) -> Placement:
        """The placement; axes that shard the same dim nest as the type says, else in mesh order."""
        return _placement_on(self, mesh)

    def with_axis(self, axis: str, placement: AxisPlacement) -> TensorType:
        """The type with a placement on one more axis, the innermost of its dim and the last of the mesh."""
        pairs = tuple(sorted((*self.placement, (axis, placement)), key=lambda pair: pair[0]))
        on_dim = {other for other, p in self.placement if p == placement}
        nests = tuple((*axes, axis) if on_dim & {*axes} else axes for axes in self.nests)
        return replace(self, placement=pairs, nests=nests)

    def without_axis(self, axis: str) -> TensorType:
        """The type without a placement on `axis`, of the same local shape."""
        pairs = tuple(pair for pair in self.placement if pair[0] != axis)
        nests = (tuple(a for a in axes if a != axis) for axes in self.nests)
        cut = {p.dim for _, p in pairs if isinstance(p, Shard)}
        blocks = tuple(pair for pair in self.blocks if pair[0] in cut)
        return replace(self, placement=pairs, nests=tuple(axes for axes in nests if len(axes) > 1), blocks=blocks)

    def global_shape(self, mesh: Mesh) -> tuple[int, ...]:
        """The global shape, of a type at level `comm`."""
        if self.extents is not None:
            return self.extents
        dims = self.placement_on(mesh).dims
        return tuple(n * axes_size(mesh, axes) for n, axes in zip(self.shape, dims, strict=True))


@lru_cache(maxsize=65536)
def _placement_on(type_: TensorType, mesh: Mesh) -> Placement:
    like = [Placement((axes,)) for axes in type_.nests]
    return replace(Placement.of(len(type_.shape), dict(type_.placement), mesh, like), blocks=type_.blocks)


def _unblocked(placement: AxisPlacement) -> AxisPlacement:
    return Shard(placement.dim) if isinstance(placement, Shard) else placement


def dtype_text(dtype: torch.dtype) -> str:
    """The MLIR element type of a torch dtype, as text; E0502 for an unsupported dtype."""
    try:
        return _DTYPES[dtype]
    except KeyError:
        raise StrettoError(
            "E0502",
            f'dtype "{dtype}" cannot be compiled',
            expected=", ".join(str(d) for d in _DTYPES),
        ) from None


def dtype_from_text(text: str) -> torch.dtype:
    """The torch dtype of an MLIR element type's text."""
    return _FROM_TEXT[text]


def axis_text(placement: AxisPlacement, level: int | None = None) -> str:
    """A placement on one axis as types spell it: "shard(0)", or "shard(0, 1)" with its level among nested axes."""
    match placement:
        case Shard(dim):
            return f"shard({dim})" if level is None else f"shard({dim}, {level})"
        case Partial(reduce):
            return f"partial({reduce})"
        case Replicate():
            return "replicate"


def _axis_from_text(text: str) -> tuple[AxisPlacement, int | None]:
    """A placement and its level among nested axes, if the text has one."""
    match = _PLACEMENT.fullmatch(text)
    if match is None:
        expected = '"shard(dim)", "shard(dim, level)" or "partial(sum|max|min)"'
        raise StrettoError("E0503", f'"{text}" is not a placement', expected=expected)
    if not match["dim"]:
        return Partial(Reduce(match["reduce"])), None
    return Shard(int(match["dim"])), int(match["level"]) if match["level"] else None


def _nests(
    placement: Sequence[tuple[str, AxisPlacement]], levels: Mapping[str, int | None]
) -> tuple[tuple[str, ...], ...]:
    """`TensorType.nests` from the levels of axes. Raises StrettoError E0503 for levels that give no order."""
    nests = []
    for dim in sorted({p.dim for _, p in placement if isinstance(p, Shard)}):
        on_dim = {axis: levels[axis] for axis, p in placement if p == Shard(dim)}
        stated = [level for level in on_dim.values() if level is not None]
        if not stated:
            continue
        if sorted(stated) != [*range(len(on_dim))]:
            found = ", ".join(f'{axis} = "{axis_text(Shard(dim), level)}"' for axis, level in on_dim.items())
            raise StrettoError(
                "E0503",
                f"the axes of dim {dim} have no order: {found}",
                expected=f"each of the levels 0 to {len(on_dim) - 1} once, or no levels for the mesh's order",
            )
        nests.append(tuple(axis for _, axis in sorted(zip(stated, on_dim, strict=True))))
    return tuple(nests)


@lru_cache(maxsize=65536)
def to_mlir(tensor: TensorType) -> Type:
    """The MLIR type."""
    ctx = context()
    element = mlir.Type.parse(dtype_text(tensor.dtype), ctx)
    levels = {axis: level for axes in tensor.nests for level, axis in enumerate(axes)}
    entries = [f'{axis} = "{axis_text(p, levels.get(axis))}"' for axis, p in tensor.placement]
    if tensor.blocks:
        blocks = (f"array<i64: {', '.join(map(str, (dim, *extents)))}>" for dim, extents in tensor.blocks)
        entries.insert(0, f"{_BLOCKS} = [{', '.join(blocks)}]")
    if tensor.extents is not None:
        entries.insert(0, f"extents = array<i64: {', '.join(map(str, tensor.extents))}>")
    encoding = mlir.Attribute.parse(f"{{{', '.join(entries)}}}", ctx) if entries else None
    with ctx, mlir.Location.unknown():
        return mlir.RankedTensorType.get(list(tensor.shape), element, encoding)


@lru_cache(maxsize=65536)
def from_mlir(type_: Type) -> TensorType:
    """The tensor type of an MLIR ranked tensor type, or of a future of one."""
    text = str(type_)
    if text.startswith("!async.value<"):
        type_ = mlir.Type.parse(text[len("!async.value<") : -1], context())
    tensor = mlir.RankedTensorType(type_)
    placement: list[tuple[str, AxisPlacement]] = []
    levels: dict[str, int | None] = {}
    extents: tuple[int, ...] | None = None
    blocks: tuple[tuple[int, tuple[int, ...]], ...] = ()
    if tensor.encoding is not None:
        for entry in mlir.DictAttr(tensor.encoding):
            if entry.name == "extents":
                extents = tuple(mlir.DenseI64ArrayAttr(entry.attr))
            elif entry.name == _BLOCKS:
                listed = [tuple(mlir.DenseI64ArrayAttr(each)) for each in mlir.ArrayAttr(entry.attr)]
                blocks = tuple((dim, tuple(rest)) for dim, *rest in listed)
            else:
                on_axis, levels[entry.name] = _axis_from_text(mlir.StringAttr(entry.attr).value)
                placement.append((entry.name, on_axis))
    dtype, by_name = _FROM_TEXT[str(tensor.element_type)], tuple(sorted(placement, key=lambda pair: pair[0]))
    return TensorType(dtype, tuple(tensor.shape), by_name, extents, _nests(by_name, levels), blocks)


def absent() -> Type:
    """The type of a result that an operation does not compute."""
    return mlir.NoneType.get(context())


def is_tensor(type_: Type) -> bool:
    """Whether a type is a ranked tensor (not a future, a tuple or `absent`)."""
    return isinstance(type_, mlir.RankedTensorType)


@lru_cache(maxsize=65536)
def is_future(type_: Type) -> bool:
    """Whether a type is a future of a tensor."""
    return str(type_).startswith("!async.value<tensor")


def element_bytes(tensor: TensorType) -> int:
    """Bytes of the tensor in the shape of the type."""
    return prod(tensor.shape) * tensor.dtype.itemsize


@lru_cache(maxsize=65536)
def future_of(type_: Type) -> Type:
    """The type of the future of a value of this type."""
    return mlir.Type.parse(f"!async.value<{type_}>", context())
