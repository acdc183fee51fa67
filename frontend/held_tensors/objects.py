"""Arguments that are Python objects with tensors, such as a cache: their tensors are buffers of the call.

A program reads the tensors and writes new values of those that the forward changes in place. All else of the object is
constant: calls share a program while its types, plain values and shapes are the same, and a forward that sets an
attribute is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copyreg import _slotnames  # type: ignore[attr-defined]
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..captured import CaptureError

PLAIN_TYPES = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
"""Types of arguments and results that become constants of the captured graph."""
_MISSING = object()


@dataclass(frozen=True, eq=False, repr=False)
class HeldObject:
    """An argument of a call. Its `repr` says all that a program depends on."""

    name: str
    value: Any
    tensors: Mapping[str, Tensor]
    """Its tensors that are not the model's, each once, such as "cache.layers.0.keys"."""
    text: str
    """By path: types, plain values, and what each tensor is."""
    parts: Sequence[tuple[str, Any]]
    """Its own object, and the objects and containers in it, by path."""
    opaque: tuple[int, ...]
    """Ids of what has neither text nor parts, such as functions: the same as long as it is the same object."""

    def __repr__(self) -> str:
        return self.text


def held_object(name: str, value: Any, models: Callable[[], Collection[int]]) -> HeldObject | None:
    """The object with its tensors; None where it has none.

    `models` gives the ids of the model's own tensors. Raises CaptureError E0211 for a module in it.
    """
    walk = _Walk()
    walk.visit(name, value)
    if not walk.paths:
        return None
    own = models()
    tensors = {walk.paths[key]: tensor for key, tensor in walk.tensors.items() if key not in own}
    text = "; ".join([*walk.lines, *(f"{path} is the model's" for key, path in walk.paths.items() if key in own)])
    return HeldObject(name, value, tensors, text, walk.parts, tuple(walk.opaque))


@dataclass
class _Walk:
    paths: dict[int, str] = field(default_factory=dict)
    """By id of a tensor: its first path."""
    tensors: dict[int, Tensor] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    parts: list[tuple[str, Any]] = field(default_factory=list)
    opaque: list[int] = field(default_factory=list)
    _seen: dict[int, str] = field(default_factory=dict)

    def visit(self, path: str, value: Any) -> None:
        if isinstance(value, Tensor):
            first = self.paths.setdefault(id(value), path)
            self.tensors[id(value)] = value
            self.lines.append(f"{path} {value.dtype} {tuple(value.shape)} at {first}")
        elif isinstance(value, PLAIN_TYPES):
            self.lines.append(f"{path} {value!r}")
        elif isinstance(value, nn.Module):
            raise CaptureError(
                "E0211",
                f'argument "{path}" is a module, of type "{type(value).__qualname__}"',
                expected="tensors, plain values and objects that hold them",
                help="make it a part of the model",
            )
        elif (known := self._seen.setdefault(id(value), path)) != path:
            self.lines.append(f"{path} is {known}")
        else:
            self._visit_parts(path, value)

    def _visit_parts(self, path: str, value: Any) -> None:
        items = _items(value)
        if items is None:
            self.lines.append(f"{path} {_name(value if isinstance(value, type) else type(value))}")
            self.opaque += [] if isinstance(value, type) else [id(value)]
            return
        self.lines.append(f"{path} {_name(type(value))} {len(items)}")
        self.parts.append((path, value))
        for key, item in items.items():
            self.visit(f"{path}.{key}", item)


def _name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _items(value: Any) -> dict[Any, Any] | None:
    """The items of a container, or the attributes of an object by name; None for what has neither."""
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, list | tuple | deque):
        return dict(enumerate(value))
    if isinstance(value, set | frozenset):
        return {repr(item): item for item in sorted(value, key=repr)}
    if isinstance(value, type) or callable(value):
        return None
    slots = {name: getattr(value, name) for name in _slotnames(type(value)) if hasattr(value, name)}
    attributes = slots | getattr(value, "__dict__", {})
    return attributes or None


@contextmanager
def unchanged(objects: Sequence[HeldObject]) -> Iterator[None]:
    """Inside, a forward may write into the objects' tensors. Whatever it sets is put back at the end.

    Raises CaptureError E0216 for an attribute or an item that it has set.
    """
    before = [(path, part, _items(part) or {}) for held in objects for path, part in held.parts]
    try:
        yield
        for path, part, items in before:
            now = _items(part) or {}
            for key in dict.fromkeys((*items, *now)):
                old, new = items.get(key, _MISSING), now.get(key, _MISSING)
                if old is not new:
                    raise _set(f"{path}.{key}", old, new)
    finally:
        for _, part, items in before:
            _restore(part, items)


def _set(path: str, before: Any, after: Any) -> CaptureError:
    return CaptureError(
        "E0216",
        f'forward sets "{path}" of its argument, from {_text(before)} to {_text(after)}',
        expected="an object of which only tensors change, in place, as a static cache that has its tensors",
        help="let it have its tensors before the first call, as by early_initialization(..) of Hugging Face's "
        "StaticCache, and keep numbers that change in tensors",
    )


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if value is _MISSING:
        return "nothing"
    return repr(value) if isinstance(value, PLAIN_TYPES) else f"a {type(value).__qualname__}"


def _restore(part: Any, items: Mapping[Any, Any]) -> None:
    now = _items(part) or {}
    if now.keys() == items.keys() and all(now[key] is value for key, value in items.items()):
        return
    if isinstance(part, dict | list | deque | set):
        part.clear()
        if isinstance(part, dict):
            part.update(items)
        else:
            (part.update if isinstance(part, set) else part.extend)(items.values())
        return
    for key in now.keys() - items.keys():
        object.__delattr__(part, key)
    for key, value in items.items():
        object.__setattr__(part, key, value)
