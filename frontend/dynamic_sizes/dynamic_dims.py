"""Dynamic dims of a model's inputs: which the user has marked, and their sizes in a call."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..capture.call import BoundCall
from ..captured import CaptureError

SMALLEST = 2
"""The smallest dynamic size. Size 1 broadcasts and size 0 is empty, so such calls get their own program."""

DimSpec = str | tuple[str, int, int | None] | torch.export.Dim
"""A name; (name, least size, greatest size); or a torch.export.Dim."""
DynamicSpec = Mapping[str, Mapping[int, DimSpec]]
"""By input and dim, its spec. Dims of equal names have equal sizes."""


@dataclass(frozen=True)
class SizeRange:
    """A named size with its range."""

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
    """(index of the input tensor, dim) of all dims with this size."""


@dataclass
class DynamicDims:
    """The marked dims of a model; those marked by torch's `mark_dynamic` are added when first seen."""

    dims: dict[str, dict[int, SizeRange]] = field(default_factory=dict)

    @staticmethod
    def of(spec: DynamicSpec | None) -> DynamicDims:
        """Read a user's specification; CaptureError E0240 if it is invalid."""
        if not isinstance(spec, Mapping | None):
            raise _unreadable(spec)
        ranges: dict[str, SizeRange] = {}
        by_input: dict[str, dict[int, SizeRange]] = {}
        for name, dims in (spec or {}).items():
            if not isinstance(dims, Mapping) or not all(isinstance(dim, int) for dim in dims):
                raise _unreadable(dims)
            by_input[name] = {dim: _range(dim_spec, ranges) for dim, dim_spec in dims.items()}
        return DynamicDims(by_input)

    def in_call(self, call: BoundCall) -> dict[str, CalledSize]:
        """The marked sizes of a call by name, without those below 2.

        Errors: CaptureError E0241 for a missing input or dim, E0242 for unequal sizes of one name.
        """
        self._note_marks(call)
        sizes: dict[str, CalledSize] = {}
        for name, dims in self.dims.items():
            if name not in call.names:
                if _may_be_given(name, call):
                    continue
                raise _no_input(name, call)
            index = call.names.index(name)
            for dim, range_ in dims.items():
                shape = call.tensors[index].shape
                if not -len(shape) <= dim < len(shape):
                    raise CaptureError(
                        "E0241", f'dim {dim} of input "{name}" is marked dynamic, but it has {len(shape)} dims'
                    )
                size, first = shape[dim], sizes.get(range_.name)
                if first is not None and first.size != size:
                    raise _unequal(range_.name, call, first, name, dim, size)
                places = (*(first.places if first else ()), (index, dim % len(shape)))
                sizes[range_.name] = CalledSize(range_, size, places)
        return {name: called_size for name, called_size in sizes.items() if called_size.size >= SMALLEST}

    def _note_marks(self, call: BoundCall) -> None:
        """Add the dims that `torch._dynamo.mark_dynamic` has marked on tensors of this call."""
        for name, tensor in zip(call.names, call.tensors, strict=True):
            for dim in sorted(getattr(tensor, "_dynamo_dynamic_indices", ())):
                ranges = getattr(tensor, "_dynamo_dynamic_range", None) or ()
                low, high = next(((marked.min, marked.max) for marked in ranges if marked.dim == dim), (None, None))
                size_range = SizeRange(_identifier(f"{name}_{dim}"), max(SMALLEST, low or 0), high)
                self.dims.setdefault(name, {}).setdefault(dim, size_range)


def _may_be_given(name: str, call: BoundCall) -> bool:
    """Whether the input, which this call leaves out, is optional."""
    parameters = call.signature.parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return takes_any or name.partition("[")[0].partition(".")[0] in parameters


def resized(call: BoundCall, sizes: Mapping[str, CalledSize], values: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
    """The call's tensors with other sizes, zero-filled."""
    shapes = [list(tensor.shape) for tensor in call.tensors]
    for name, size in sizes.items():
        for index, dim in size.places:
            shapes[index][dim] = values[name]
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
    size_range = SizeRange(name, max(SMALLEST, low or 0), high)
    known = ranges.setdefault(name, size_range)
    if known != size_range and low is not None:
        raise CaptureError("E0240", f'the size "{name}" has two ranges', help="give its range once")
    return known


def _identifier(text: str) -> str:
    """The text with underscores in place of all but letters and digits."""
    return "".join(character if character.isalnum() else "_" for character in text)


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
        f'dims of input "{name}" are marked dynamic, but the model takes no such tensor',
        expected=f"one of {', '.join(call.names)}",
        help=f'did you mean "{near[0]}"?' if near else "",
    )


def _unequal(
    name: str, call: BoundCall, first: CalledSize, second_input: str, second_dim: int, second_size: int
) -> CaptureError:
    first_input, first_dim = first.places[0]
    return CaptureError(
        "E0242",
        f'dim {second_dim} of "{second_input}" has {second_size} elements and dim {first_dim} of '
        f'"{call.names[first_input]}" has {first.size}, but both are "{name}"',
        help="give the dims two names, or pass tensors of equal sizes",
    )
