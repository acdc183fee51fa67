"""Record and undo the side effects of a traced forward: replaced buffers, set attributes, changed containers.

A replaced buffer (`self.mean = 0.9 * self.mean + ...`) counts as changed: the new value is written into the old tensor.
Other attributes belong to Python: a program neither sets them nor changes lists in them.
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
from .module_attributes import Rebound, Snapshot, attribute_reads_recorded, dotted

_NUMBERS = (bool, int, float)
_PLAIN = (*_NUMBERS, complex, str, bytes, type(None))


@dataclass
class SideEffects:
    """The side effects of one forward; paths are dotted names of attributes, such as "encoder.steps"."""

    changed_numbers: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Attributes that are numbers and have changed: (before, after)."""
    kept_tensors: list[str] = field(default_factory=list)
    """Attributes that hold a new tensor."""
    set_attributes: list[str] = field(default_factory=list)
    """Attributes that hold any other new value, except functions and new private flags."""
    changed_containers: dict[str, str] = field(default_factory=dict)
    """Changed lists, dicts and sets, with the name of their type."""
    reads: dict[str, dict[str, None]] = field(default_factory=dict)
    """By module path, the names of attributes that were read."""
    value_reads: dict[str, None] = field(default_factory=dict)
    """Lines ("file:line") at which a tensor's value is read into Python."""

    replaced_buffers: list[str] = field(default_factory=list)
    """Paths of buffers that the forward replaces by another tensor."""
    python_draws: dict[str, None] = field(default_factory=dict)
    """Lines ("file:line") at which Python draws random numbers."""

    def warn(self) -> None:
        """Warn about side effects that a compiled model does not have."""
        for path, (before, after) in self.changed_numbers.items():
            warnings.warn(
                f'forward changes the number "{path}" (from {before!r} to {after!r}), which a compiled model does not:'
                " every call computes what the first one did; make it a buffer, such as torch.tensor(0)",
                stacklevel=2,
            )
        for place in self.value_reads:
            warnings.warn(
                f"{place}: forward takes the value of a tensor into Python, where a compiled model has none: what is"
                " made of it there, such as a printed line, is not made; return the tensor instead",
                stacklevel=2,
            )
        for place in self.python_draws:
            warnings.warn(
                f"{place}: forward draws random numbers in Python, which a compiled model does once: every call repeats"
                " what the first one drew; draw them with torch.rand and select with torch.where, or pass them in",
                stacklevel=2,
            )
        for path in self.kept_tensors:
            warnings.warn(
                f'forward keeps a tensor in "{path}", which a compiled model does not: return it, or make it a buffer',
                stacklevel=2,
            )
        for path in self.set_attributes:
            warnings.warn(
                f'forward sets "{path}", which a compiled model does not: it stays as it was before the call;'
                " return the value instead",
                stacklevel=2,
            )
        for path, kind in self.changed_containers.items():
            warnings.warn(
                f'forward changes the {kind} "{path}", which a compiled model does not: it stays as it was before the'
                " call; return what it collects, or keep it in a buffer",
                stacklevel=2,
            )


class RecordValueReads(TorchFunctionMode):
    """Inside, the lines at which a forward calls `.item()` are recorded."""

    def __init__(self, seen: SideEffects) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the function. Errors: E0217 for `Tensor.random_`, which export cannot write down."""
        if function is Tensor.random_:
            raise CaptureError(
                "E0217",
                '"random_" cannot be captured',
                expected="torch.randint and its like",
                help="write x.copy_(torch.randint(low, high, x.shape))",
            )
        if function is Tensor.item:
            frame = sys._getframe(1)
            while frame is not None and not is_users_file(frame.f_code.co_filename):
                frame = frame.f_back  # type: ignore[assignment]
            if frame is not None:
                self._seen.value_reads[f"{frame.f_code.co_filename}:{frame.f_lineno}"] = None
        return function(*args, **(kwargs or {}))


@contextmanager
def side_effects_recorded(model: nn.Module, seen: SideEffects) -> Iterator[None]:
    """Inside, a forward's side effects are recorded in `seen`, and undone at the end, also if it fails.

    Replaced buffers are written back. Errors: E0216 for a buffer that changes its shape or dtype, or becomes None.
    """
    modules = dict(model.named_modules())
    buffers = {path: dict(module._buffers) for path, module in modules.items()}
    snapshot = Snapshot(model)
    try:
        with attribute_reads_recorded(model, seen.reads):
            yield
        for path, module in modules.items():
            for name, old in buffers[path].items():
                if module._buffers.get(name) is not old:
                    _write_back(model, dotted(path, name), old, module._buffers.get(name))
                    seen.replaced_buffers.append(dotted(path, name))
    finally:
        for path, module in modules.items():
            for name in [name for name in module._buffers if name not in buffers[path]]:
                seen.kept_tensors.append(dotted(path, name))
                del module._buffers[name]
            module._buffers.update(buffers[path])
        _record_attributes(snapshot, seen)


def _write_back(model: nn.Module, path: str, old: Tensor | None, new: Tensor | None) -> None:
    if old is None or new is None or old.shape != new.shape or old.dtype != new.dtype:
        raise CaptureError(
            "E0216",
            f'forward replaces its buffer "{path}" ({_tensor_text(old)}) by {_tensor_text(new)}',
            span=forward_span(model),
            expected="a tensor of the same shape and dtype",
            help="register the buffer with the shape and dtype that it will have",
        )
    with torch.no_grad():
        old.copy_(new.detach())


def _tensor_text(tensor: Tensor | None) -> str:
    return "None" if tensor is None else f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _record_attributes(snapshot: Snapshot, seen: SideEffects) -> None:
    """Undo the forward's changes of attributes, and record them in `seen`."""
    rebound, seen.changed_containers = snapshot.restore()
    for attribute in rebound:
        if attribute.is_torchs_own:
            continue
        if isinstance(attribute.after, Tensor):
            seen.kept_tensors.append(attribute.path)
        elif type(attribute.after) in _NUMBERS and type(attribute.before) in _NUMBERS:
            if attribute.after != attribute.before:
                seen.changed_numbers[attribute.path] = attribute.before, attribute.after
        elif not callable(attribute.after) and not (isinstance(attribute.after, _PLAIN) and _is_harmless(attribute)):
            seen.set_attributes.append(attribute.path)


def _is_harmless(bound: Rebound) -> bool:
    """Whether a plain value does not matter: it is unchanged, or a new private flag such as `_ready = True`."""
    return bool(bound.after == bound.before) or (bound.before is None and bound.path.rpartition(".")[2].startswith("_"))
