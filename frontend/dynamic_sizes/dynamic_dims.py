"""Which dims of a model's inputs have sizes that differ from call to call: what the user says, and what a call has."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..capture.call import BoundCall
from ..captured import CaptureError

SMALLEST = 2
"""A dim of one element broadcasts, and one of none has no values: such calls are compiled for themselves."""

DimSpec = str | tuple[str, int, int | None] | torch.export.Dim
"""A name; a name with the least and the greatest size; or torch's way to say either."""
DynamicSpec = Mapping[str, Mapping[int, DimSpec]]
"""By input: its dims with their names. Dims of equal names have equal sizes."""


@dataclass(frozen=True)
class SizeRange:
    """A named size and what it may be."""

    name: str
    low: int = SMALLEST
    high: int | None = None

    def holds(self, size: int) -> bool:
        """Whether a size is in the range."""
        return self.low <= size and (self.high is None or size <= self.high)


@dataclass(frozen=True)
class CalledSize:
    """A named size in one call."""

    range: SizeRange
    size: int
    places: tuple[tuple[int, int], ...]
    """(number of the input tensor, dim) of all dims that have it."""


@dataclass
class DynamicDims:
    """All dims of one model that are marked; those that torch's `mark_dynamic` marks join when they are first seen."""

    dims: dict[str, dict[int, SizeRange]] = field(default_factory=dict)

    @staticmethod
    def of(spec: DynamicSpec | None) -> DynamicDims:
        """Read what a user wrote; CaptureError E0240 where it is no such thing."""
        if not isinstance(spec, Mapping | None):
            raise _unreadable(spec)
        ranges: dict[str, SizeRange] = {}
        found: dict[str, dict[int, SizeRange]] = {}
        for name, dims in (spec or {}).items():
            if not isinstance(dims, Mapping) or not all(isinstance(dim, int) for dim in dims):
                raise _unreadable(dims)
            found[name] = {dim: _range(each, ranges) for dim, each in dims.items()}
        return DynamicDims(found)

    def in_call(self, call: BoundCall) -> dict[str, CalledSize]:
        """The marked sizes of a call by name, without those that are smaller than two.

        Errors: CaptureError E0241 for an input or a dim that is not there, E0242 where equal names have unequal sizes.
        """
        self._note_marks(call)
        found: dict[str, CalledSize] = {}
        for name, dims in self.dims.items():
            if name not in call.names:
                if _may_be_given(name, call):
                    continue
                raise _no_input(name, call)
            at = call.names.index(name)
            for dim, range_ in dims.items():
                shape = call.tensors[at].shape
                if not -len(shape) <= dim < len(shape):
                    raise CaptureError("E0241", f'input "{name}" has {len(shape)} dims, and dim {dim} is to be dynamic')
                size, before = shape[dim], found.get(range_.name)
                if before is not None and before.size != size:
                    raise _unequal(range_.name, call, before, name, dim, size)
                places = (*(before.places if before else ()), (at, dim % len(shape)))
                found[range_.name] = CalledSize(range_, size, places)
        return {name: each for name, each in found.items() if each.size >= SMALLEST}

    def _note_marks(self, call: BoundCall) -> None:
        """Dims that `torch._dynamo.mark_dynamic` has marked on a tensor of this call."""
        for name, tensor in zip(call.names, call.tensors, strict=True):
            for dim in sorted(getattr(tensor, "_dynamo_dynamic_indices", ())):
                ranges = getattr(tensor, "_dynamo_dynamic_range", None) or ()
                low, high = next(((each.min, each.max) for each in ranges if each.dim == dim), (None, None))
                made = SizeRange(_plain(f"{name}_{dim}"), max(SMALLEST, low or 0), high)
                self.dims.setdefault(name, {}).setdefault(dim, made)


def _may_be_given(name: str, call: BoundCall) -> bool:
    """Whether a call may leave the input out, as this one does."""
    parameters = call.signature.parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return takes_any or name.partition("[")[0].partition(".")[0] in parameters


def resized(call: BoundCall, sizes: Mapping[str, CalledSize], values: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
    """Tensors as the call's are, with other sizes; their values are zeros."""
    shapes = [list(tensor.shape) for tensor in call.tensors]
    for name, each in sizes.items():
        for at, dim in each.places:
            shapes[at][dim] = values[name]
    return tuple(
        tensor if list(tensor.shape) == shape else tensor.new_zeros(shape).requires_grad_(tensor.requires_grad)
        for tensor, shape in zip(call.tensors, shapes, strict=True)
    )


def _range(spec: Any, ranges: dict[str, SizeRange]) -> SizeRange:
    match spec:
        case str(name):
            low, high = None, None
        case (str(name), int() | None as low, int() | None as high):
            pass
        case torch.export.Dim():
            name, low, high = spec.__name__, spec.min, spec.max
            high = high if isinstance(high, int) else None
        case _:
            raise _unreadable(spec)
    if not name.isidentifier() or (low is not None and high is not None and low > high):
        raise _unreadable(spec)
    found = SizeRange(name, max(SMALLEST, low or 0), high)
    known = ranges.setdefault(name, found)
    if known != found and low is not None:
        raise CaptureError("E0240", f'the size "{name}" is given two ranges', help="give its range once")
    return known


def _plain(text: str) -> str:
    """The text with everything that no name has made an underscore."""
    return "".join(each if each.isalnum() else "_" for each in text)


def _unreadable(spec: object) -> CaptureError:
    return CaptureError(
        "E0240",
        f"dims cannot be marked dynamic by {spec!r:.60}",
        expected='{"input": {dim: "name"}}, with (name, least, greatest) or a torch.export.Dim for a name with a range',
    )


def _no_input(name: str, call: BoundCall) -> CaptureError:
    near = difflib.get_close_matches(name, [*call.signature.parameters, *call.names], 1)
    return CaptureError(
        "E0241",
        f'dims of the input "{name}" are to be dynamic, and the model takes no such tensor',
        expected=f"one of {', '.join(call.names)}",
        help=f'did you mean "{near[0]}"?' if near else "",
    )


def _unequal(name: str, call: BoundCall, before: CalledSize, other: str, dim: int, size: int) -> CaptureError:
    at, first = before.places[0]
    return CaptureError(
        "E0242",
        f'dim {dim} of "{other}" has {size} elements and dim {first} of "{call.names[at]}" has {before.size}, '
        f'but both are "{name}"',
        help="give the dims two names, or pass tensors of equal sizes",
    )
