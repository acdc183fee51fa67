"""Tensor types: torch dtypes as MLIR element types; placement and uneven extents as the type's encoding.

`tensor<12565x64xf32, {extents = array<i64: 50257, 64>, tp = "shard(0)"}>` is what every rank holds of a (50257, 64)
tensor whose first dim is sharded over "tp". At level `aten`, shapes are global and there is no `extents`. At level
`comm`, shapes are local and padded, and `extents` has the global shape if padding makes it differ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
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
}
_FROM_TEXT = {text: dtype for dtype, text in _DTYPES.items()}
_PLACEMENT = re.compile(rf"shard\((?P<dim>[0-9]+)\)|partial\((?P<reduce>{'|'.join(Reduce)})\)")


@dataclass(frozen=True)
class TensorType:
    """The type of a value: `shape` at its level; `extents` is the global shape if sharding is uneven."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    placement: tuple[tuple[str, AxisPlacement], ...] = ()
    """(axis, placement) of every axis that does not replicate, sorted by axis name."""
    extents: tuple[int, ...] | None = None

    def placed(self, placement: Placement, mesh: Mesh) -> TensorType:
        """The same tensor with another placement."""
        pairs = ((axis, placement.on(axis)) for axis, _ in sorted(mesh))
        not_replicated = tuple((axis, p) for axis, p in pairs if not isinstance(p, Replicate))
        return TensorType(self.dtype, self.shape, not_replicated, self.extents)

    def placement_on(self, mesh: Mesh) -> Placement:
        """The placement, with nested axes in mesh order."""
        return Placement.of(len(self.shape), dict(self.placement), mesh)

    def global_shape(self, mesh: Mesh) -> tuple[int, ...]:
        """The global shape, of a type at level `comm`."""
        if self.extents is not None:
            return self.extents
        dims = self.placement_on(mesh).dims
        return tuple(n * axes_size(mesh, axes) for n, axes in zip(self.shape, dims, strict=True))


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


def axis_text(placement: AxisPlacement) -> str:
    """A placement on one axis as types spell it: "shard(0)"."""
    match placement:
        case Shard(dim):
            return f"shard({dim})"
        case Partial(reduce):
            return f"partial({reduce})"
        case Replicate():
            return "replicate"


def _axis_from_text(text: str) -> AxisPlacement:
    match = _PLACEMENT.fullmatch(text)
    if match is None:
        raise StrettoError("E0503", f'"{text}" is not a placement', expected='"shard(dim)" or "partial(sum|max|min)"')
    return Shard(int(match["dim"])) if match["dim"] else Partial(Reduce(match["reduce"]))


@lru_cache(maxsize=65536)
def to_mlir(tensor: TensorType) -> Type:
    """The MLIR type."""
    ctx = context()
    element = mlir.Type.parse(dtype_text(tensor.dtype), ctx)
    entries = [f'{axis} = "{axis_text(p)}"' for axis, p in tensor.placement]
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
    extents: tuple[int, ...] | None = None
    if tensor.encoding is not None:
        for entry in mlir.DictAttr(tensor.encoding):
            if entry.name == "extents":
                extents = tuple(mlir.DenseI64ArrayAttr(entry.attr))
            else:
                placement.append((entry.name, _axis_from_text(mlir.StringAttr(entry.attr).value)))
    return TensorType(_FROM_TEXT[str(tensor.element_type)], tuple(tensor.shape), tuple(sorted(placement)), extents)


def absent() -> Type:
    """The type of a result that an operation does not compute."""
    return mlir.NoneType.get(context())


def is_tensor(type_: Type) -> bool:
    """Whether a type is a ranked tensor (not a future, a tuple or `absent`)."""
    return isinstance(type_, mlir.RankedTensorType)


def element_bytes(tensor: TensorType) -> int:
    """Bytes of the tensor in the shape of the type."""
    return prod(tensor.shape) * tensor.dtype.itemsize


def future_of(type_: Type) -> Type:
    """The type of the future of a value of this type."""
    return mlir.Type.parse(f"!async.value<{type_}>", context())
