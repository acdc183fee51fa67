"""How a value is cut into nanobatches: its dim, the type of a part, the operations that take parts and join them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...ir.bindings import Value
from ...ir.placement import Mesh, Partial, axes_size
from ...ir.types import TensorType, from_mlir
from ..rewriting import Emitter


@dataclass(frozen=True)
class Cut:
    """Of a value: the dim that is cut. It may merge `before` rows of outer dims and `after` rows of inner ones with it.

    A part of such a dim has, of each of the `before` rows, a run of the dim that is cut.
    """

    dim: int
    before: int = 1
    after: int = 1

    def extent(self, type_: TensorType) -> int:
        """The extent of the dim that is cut, without those that are merged with it; 0 where they do not divide it."""
        whole = type_.shape[self.dim] if self.dim < len(type_.shape) else 0
        return 0 if whole % (self.before * self.after) else whole // (self.before * self.after)

    def part(self, type_: TensorType, size: int) -> TensorType:
        """The type of `size` elements of the dim that is cut."""
        rows = self.before * size * self.after
        extents = type_.extents
        if extents is not None:
            ranks = extents[self.dim] // type_.shape[self.dim]
            extents = (*extents[: self.dim], rows * ranks, *extents[self.dim + 1 :])
        blocks = tuple(each for each in type_.blocks if each[0] != self.dim)  # a part need not have all of them
        return replace(_with(type_, self.dim, (rows,)), extents=extents, blocks=blocks)


Placed = Cut | Partial | None
"""What a nanobatch has of a value: a part of it, a term of a sum, or all."""


@dataclass(frozen=True)
class Parts:
    """Where a dim is cut: the borders of the nanobatches, from 0 to its extent."""

    borders: tuple[int, ...]

    @staticmethod
    def of(extent: int, sizes: Sequence[int]) -> Parts:
        """Parts in the ratio of `sizes`.

        >>> Parts.of(8, (1, 1, 1)).borders, Parts.of(8, (3, 5)).borders
        ((0, 2, 5, 8), (0, 3, 8))
        """
        sums = [sum(sizes[:index]) for index in range(len(sizes) + 1)]
        return Parts(tuple(extent * each // sums[-1] for each in sums))

    @property
    def extent(self) -> int:
        """The extent of the dim."""
        return self.borders[-1]

    @property
    def count(self) -> int:
        """How many nanobatches there are."""
        return len(self.borders) - 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """The extent of each nanobatch."""
        return tuple(end - start for start, end in zip(self.borders, self.borders[1:], strict=False))

    @property
    def are_even(self) -> bool:
        """Whether all nanobatches have one size."""
        return len({*self.sizes}) == 1

    def take(self, value: Value, cut: Cut, index: int, emitter: Emitter) -> Value:
        """One nanobatch of a whole value: a view of its memory where no outer dim is merged."""
        type_ = from_mlir(value.type)
        start, end = (border * cut.after for border in self.borders[index : index + 2])
        part = cut.part(type_, self.sizes[index])
        if cut.before == 1:
            return emitter.op("aten.slice.Tensor", value, cut.dim, start, end, type=part)
        plain = TensorType(type_.dtype, type_.shape)
        apart = _with(plain, cut.dim, (cut.before, self.extent * cut.after))
        viewed = emitter.op("aten.reshape.default", value, list(apart.shape), type=apart)
        taken = _with(plain, cut.dim, (cut.before, end - start))
        sliced = emitter.op("aten.slice.Tensor", viewed, cut.dim + 1, start, end, type=taken)
        return emitter.op("aten.reshape.default", sliced, list(part.shape), type=part)

    def join(self, parts: Sequence[Value], whole: TensorType, cut: Cut, emitter: Emitter) -> Value:
        """The whole value of its nanobatches."""
        if cut.before == 1:
            return emitter.op("aten.cat.default", list(parts), cut.dim, type=whole)
        plain = TensorType(whole.dtype, whole.shape)
        apart = []
        for part, size in zip(parts, self.sizes, strict=True):
            type_ = _with(plain, cut.dim, (cut.before, size * cut.after))
            apart.append(emitter.op("aten.reshape.default", part, list(type_.shape), type=type_))
        joined = _with(plain, cut.dim, (cut.before, self.extent * cut.after))
        value = emitter.op("aten.cat.default", apart, cut.dim + 1, type=joined)
        return emitter.op("aten.reshape.default", value, list(whole.shape), type=whole)


def is_even_on(type_: TensorType, dim: int, mesh: Mesh) -> bool:
    """Whether a local tensor has no padding in a dim."""
    if type_.extents is None:
        return True
    ranks = axes_size(mesh, type_.placement_on(mesh).dims[dim])
    return type_.extents[dim] == type_.shape[dim] * ranks


def _with(type_: TensorType, dim: int, extents: tuple[int, ...]) -> TensorType:
    """The type with other extents in place of a dim."""
    return replace(type_, shape=(*type_.shape[:dim], *extents, *type_.shape[dim + 1 :]))
