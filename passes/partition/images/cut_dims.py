"""An image that is cut on one or several dims: halos of all of them, one dim after the other.

The second dim's halo is that of the image with the first one's, so it brings the corners too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from ....ir.bindings import Value
from ....ir.dialects.schemas import definitions
from ....ir.operations import Call, build
from ....ir.types import TensorType, absent, from_mlir, to_mlir
from ....ops.overloads import overload
from ..emitter import LocalEmitter, Shards, Types
from .exchange import Cut, Exchange

AGAIN = 1
"""The number (`use`) of what the backward exchanges again: else `cse` would keep the forward's image with its halo."""


@dataclass(frozen=True)
class CutDims:
    """The cut dims of an image, by whose windows an op reads it; `fill` is what it reads beyond the ends."""

    emitter: LocalEmitter
    cuts: tuple[Cut, ...]
    fill: float = 0.0

    @staticmethod
    def of(emitter: LocalEmitter, shards: Sequence[Shards], fill: float = 0.0) -> CutDims:
        """The cut dims that a lowering is given."""
        cuts = []
        for each in shards:
            assert each.window is not None, "a strategy with halos says how the op reads the dim"
            cuts.append(Cut(each.dim, each.axes, each.window, each.window.halo(emitter.size(each.axes))))
        return CutDims(emitter, tuple(cuts), fill)

    def read(self, image: Value, use: int | None = None) -> Value:
        """What the op reads."""
        return reduce(lambda value, cut: self._exchange(cut, use).read(value), self.cuts, image)

    def sent_back(self, gradient: Value, type_: TensorType) -> Value:
        """The gradient of the image, of that of what the op read."""
        parts = reduce(lambda value, cut: self._exchange(cut).sent_back(value), reversed(self.cuts), gradient)
        return typed(parts, type_)

    def kept(self, made: Value, type_: TensorType) -> Value:
        """The rank's outputs, of all that the op has made."""
        return typed(reduce(lambda value, cut: self._exchange(cut).kept(value), self.cuts, made), type_)

    def unkept(self, gradient: Value) -> Value:
        """The gradient of all that the op has made, of the rank's outputs."""
        return reduce(lambda value, cut: self._exchange(cut).unkept(value), self.cuts, gradient)

    def read_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what the op reads, of the shape of the rank's chunk."""
        taken = {cut.dim: cut.halo.taken for cut in self.cuts}
        return tuple(taken.get(dim, extent) for dim, extent in enumerate(shape))

    def made_type(self, type_: TensorType) -> TensorType:
        """The type of all that the op makes, of that of the rank's outputs."""
        made = {cut.dim: cut.halo.made for cut in self.cuts}
        return TensorType(type_.dtype, tuple(made.get(dim, extent) for dim, extent in enumerate(type_.shape)))

    def zeros(self, shape: tuple[int, ...], like: Value) -> Value:
        """Zeros, for an operand of which an op takes the shape alone."""
        type_ = TensorType(from_mlir(like.type).dtype, shape)
        return self.emitter.op("aten.full.default", list(shape), 0.0, type=type_, dtype=type_.dtype)

    def _exchange(self, cut: Cut, use: int | None = None) -> Exchange:
        return Exchange(self.emitter, cut, self.fill, use)


def typed(value: Value, type_: TensorType) -> Value:
    """The value, which an op of this file's users has just made, as a part of the global tensor that it belongs to."""
    value.set_type(to_mlir(type_))
    return value


class Arguments:
    """The arguments of a call by the schema's names, with its defaults for omitted ones."""

    def __init__(self, call: Call) -> None:
        schema = overload(call.name)
        assert schema is not None, "images have ops of torch"
        names = [argument.name for argument in definitions()[call.name].positional]
        defaults = {argument.name: argument.default_value for argument in schema._schema.arguments}
        self.name = call.name
        self.values: dict[str, Any] = {name: defaults[name] for name in names}
        self.values |= {n: value for n, value in zip(names, call.args, strict=False) if value is not None}

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def at(self, name: str, changed: Mapping[int, int], spaces: int, rank: int) -> list[int]:
        """A list with one number for each dim of space, some dims' changed; `rank` is that of the image."""
        given = list(self.values[name] or ())
        given = given * spaces if len(given) == 1 else given
        return [changed.get(d + rank - spaces, number) for d, number in enumerate(given)]

    def built(self, emitter: LocalEmitter, types: Types, changed: Mapping[str, Any]) -> list[Value]:
        """The op with some arguments changed, with results of the types."""
        arguments = {**self.values, **changed}
        results = [absent() if type_ is None else to_mlir(type_) for type_ in types]
        return [*build(Call(self.name, tuple(arguments.values())), results, emitter.loc)]
