"""What a forward leaves on its modules besides its result: buffers that it replaces, attributes that it sets.

A buffer that is replaced (`self.mean = 0.9 * self.mean + ...`) is one that is changed: its new value is written into
the old one, which keeps its place. An attribute that is no buffer belongs to Python: a program does not set it, nor
fill the list that it holds.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..captured import CaptureError
from ..metadata import forward_span, is_users_file
from .module_attributes import Rebound, Snapshot, joined, noted_reads

_NUMBERS = (bool, int, float)
_PLAIN = (*_NUMBERS, complex, str, bytes, type(None))


@dataclass
class SideEffects:
    """What was seen of one forward; paths are module paths with the attribute's name, such as "encoder.steps"."""

    counted: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Numbers that were there before and have another value now: (before, after)."""
    kept: list[str] = field(default_factory=list)
    """Attributes that hold a tensor which they did not hold before."""
    bound: list[str] = field(default_factory=list)
    """Attributes that hold anything else which they did not hold before, but functions and new private flags."""
    filled: dict[str, str] = field(default_factory=dict)
    """Lists, dicts and sets that hold something else than before, to what they are."""
    reads: dict[str, dict[str, None]] = field(default_factory=dict)
    """By module path the names of attributes that were asked for."""
    read_out: dict[str, None] = field(default_factory=dict)
    """Lines ("file:line") at which the value of a tensor is taken into Python."""

    def warn(self) -> None:
        """Say what a compiled model will not do; nothing where there is nothing to say."""
        for path, (before, after) in self.counted.items():
            warnings.warn(
                f'forward changes the number "{path}" (from {before!r} to {after!r}), which a compiled model does not:'
                " every call computes what the first one did; make it a buffer, such as torch.tensor(0)",
                stacklevel=2,
            )
        for place in self.read_out:
            warnings.warn(
                f"{place}: forward takes the value of a tensor into Python, where a compiled model has none: what is"
                " made of it there, such as a printed line, is not made; return the tensor instead",
                stacklevel=2,
            )
        for path in self.kept:
            warnings.warn(
                f'forward keeps a tensor in "{path}", which a compiled model does not: return it, or make it a buffer',
                stacklevel=2,
            )
        for path in self.bound:
            warnings.warn(
                f'forward sets "{path}", which a compiled model does not: it stays as it was before the call;'
                " return the value instead",
                stacklevel=2,
            )
        for path, kind in self.filled.items():
            warnings.warn(
                f'forward changes the {kind} "{path}", which a compiled model does not: it stays as it was before the'
                " call; return what it collects, or keep it in a buffer",
                stacklevel=2,
            )


class ReadOut(TorchFunctionMode):
    """Inside, the lines are noted at which a forward calls `.item()`."""

    def __init__(self, seen: SideEffects) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the function."""
        if function is Tensor.item:
            frame = sys._getframe(1)
            while frame is not None and not is_users_file(frame.f_code.co_filename):
                frame = frame.f_back  # type: ignore[assignment]
            if frame is not None:
                self._seen.read_out[f"{frame.f_code.co_filename}:{frame.f_lineno}"] = None
        return function(*args, **(kwargs or {}))


@contextmanager
def watched(model: nn.Module, seen: SideEffects) -> Iterator[None]:
    """Around a traced forward: what it replaces is written back, what it sets is noted and taken back, if it fails too.

    Errors: E0216 where a buffer is replaced by one of another shape or dtype, or by none.
    """
    modules = dict(model.named_modules())
    buffers = {path: dict(module._buffers) for path, module in modules.items()}
    snapshot = Snapshot(model)
    try:
        with noted_reads(model, seen.reads):
            yield
        for path, module in modules.items():
            for name, old in buffers[path].items():
                if module._buffers.get(name) is not old:
                    _write_back(model, joined(path, name), old, module._buffers.get(name))
    finally:
        for path, module in modules.items():
            for name in [name for name in module._buffers if name not in buffers[path]]:
                seen.kept.append(joined(path, name))
                del module._buffers[name]
            module._buffers.update(buffers[path])
        _say(snapshot, seen)


def _write_back(model: nn.Module, path: str, old: Tensor | None, new: Tensor | None) -> None:
    if old is None or new is None or old.shape != new.shape or old.dtype != new.dtype:
        raise CaptureError(
            "E0216",
            f'forward replaces its buffer "{path}" ({_said(old)}) by {_said(new)}',
            span=forward_span(model),
            expected="a tensor of the same shape and dtype",
            help="register the buffer with the shape and dtype that it will have",
        )
    with torch.no_grad():
        old.copy_(new.detach())


def _said(tensor: Tensor | None) -> str:
    return "None" if tensor is None else f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _say(snapshot: Snapshot, seen: SideEffects) -> None:
    """Take back what the forward did to attributes, and note it."""
    rebound, seen.filled = snapshot.take_back()
    for each in rebound:
        if each.torchs:
            continue
        if isinstance(each.after, Tensor):
            seen.kept.append(each.path)
        elif type(each.after) in _NUMBERS and type(each.before) in _NUMBERS:
            if each.after != each.before:
                seen.counted[each.path] = each.before, each.after
        elif not callable(each.after) and not (isinstance(each.after, _PLAIN) and _is_idle(each)):
            seen.bound.append(each.path)


def _is_idle(bound: Rebound) -> bool:
    """Whether nobody misses a plain value: it was there already, or is a note to itself, such as `_ready = True`."""
    return bool(bound.after == bound.before) or (bound.before is None and bound.path.rpartition(".")[2].startswith("_"))
