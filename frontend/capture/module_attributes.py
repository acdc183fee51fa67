"""Record and undo what a traced forward does to module attributes other than parameters, buffers and modules.

Attributes that the forward reads are constants of the graph. Attributes that it sets, and lists, dicts and sets that it
changes, belong to Python, which a program does not run: the changes are recorded and undone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

TORCH_ATTRIBUTES = frozenset(vars(nn.Module()))
"""The attributes of every module."""
_HOOKS = tuple(name for name in sorted(TORCH_ATTRIBUTES) if "_hooks" in name)
"""Where torch keeps a module's hooks. They are restored too, consistently with flags that the forward sets."""
_ABSENT = object()


@dataclass(frozen=True)
class Rebound:
    """An attribute that was set, changed or deleted."""

    path: str
    """Module path and name, such as "encoder.steps"."""
    before: Any
    after: Any
    """`before` and `after` are None for a missing attribute."""
    is_torchs_own: bool
    """Whether it is internal to torch, such as an LSTM's list of weights."""


class Snapshot:
    """A snapshot of the attributes of a model's modules, and of the containers in them."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._attributes = {path: _attributes(module) for path, module in self._modules.items()}
        self._contents: dict[int, tuple[str, Any, Any]] = {}
        self._hooks = [
            (hooks, dict(hooks))
            for module in self._modules.values()
            for hooks in map(vars(module).get, _HOOKS)
            if hooks is not None
        ]
        for path, attributes in self._attributes.items():
            for name, value in attributes.items():
                self._note(dotted(path, name), value)

    def restore(self) -> tuple[list[Rebound], dict[str, str]]:
        """Restore everything; returns the rebound attributes, and by path the type of each changed container."""
        for hook_dict, hooks in self._hooks:
            hook_dict.clear()
            hook_dict.update(hooks)
        rebound = []
        for path, module in self._modules.items():
            before, after = self._attributes[path], _attributes(module)
            for name in dict.fromkeys((*before, *after)):
                old, new = before.get(name, _ABSENT), after.get(name, _ABSENT)
                if old is new:
                    continue
                old_value, new_value = (None if value is _ABSENT else value for value in (old, new))
                rebound.append(Rebound(dotted(path, name), old_value, new_value, _is_torchs(module, name)))
                if old is _ABSENT:
                    del module.__dict__[name]
                else:
                    module.__dict__[name] = old
        changed = {}
        for path, container, copy in self._contents.values():
            if not _same_contents(container, copy):
                changed[path] = type(container).__name__
                container.clear()
                getattr(container, "extend" if isinstance(container, list | deque) else "update")(copy)
        return rebound, changed

    def _note(self, path: str, value: Any) -> None:
        """Copy the contents of a container, and of nested ones."""
        if not isinstance(value, list | deque | dict | set) or id(value) in self._contents:
            return
        copy = dict(value) if isinstance(value, dict) else set(value) if isinstance(value, set) else list(value)
        self._contents[id(value)] = path, value, copy
        for key, item in copy.items() if isinstance(copy, dict) else enumerate(copy):
            self._note(f"{path}[{key!r}]", item)


class _RecordingLookup:
    """Replaces a class's `__getattribute__`. It is not a function, as torch's Python tracer would stop at one."""

    def __init__(self, paths: Mapping[int, str], into: dict[str, dict[str, None]]) -> None:
        self._paths = paths
        self._into = into

    def __get__(self, module: nn.Module | None, cls: type[nn.Module]) -> Callable[..., Any]:
        return self.look if module is None else partial(self.look, module)

    def look(self, module: nn.Module, name: str) -> Any:
        """Look up the attribute, and record its name."""
        path = self._paths.get(id(module))
        if path is not None and name not in TORCH_ATTRIBUTES and not name.startswith("__"):
            self._into.setdefault(path, {})[name] = None
        return object.__getattribute__(module, name)


@contextmanager
def attribute_reads_recorded(model: nn.Module, into: dict[str, dict[str, None]]) -> Iterator[None]:
    """Inside, the names of attributes that are read from the model's modules are recorded, by module path."""
    paths = {id(module): path for path, module in model.named_modules()}
    outer = vars(nn.Module).get("__getattribute__")
    type.__setattr__(nn.Module, "__getattribute__", _RecordingLookup(paths, into))
    try:
        yield
    finally:
        if outer is None:
            type.__delattr__(nn.Module, "__getattribute__")
        else:
            type.__setattr__(nn.Module, "__getattribute__", outer)


def dotted(path: str, name: str) -> str:
    """The dotted name of an attribute or buffer."""
    return f"{path}.{name}" if path else name


def _is_torchs(module: nn.Module, name: str) -> bool:
    """Whether the attribute is private and the module has a base class of torch."""
    classes = [cls.__module__ for cls in type(module).__mro__ if cls is not nn.Module]
    ours = [cls for cls in classes if cls.startswith("torch.nn.") and not cls.endswith(".container")]
    return name.startswith("_") and bool(ours)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in TORCH_ATTRIBUTES or name == "training"}


def _same_contents(container: Any, copy: Any) -> bool:
    """Whether a container holds the same objects as a copy, in the same order."""
    if isinstance(container, set):
        return bool(container == copy)
    if len(container) != len(copy):
        return False
    if isinstance(container, dict):
        return all(a == b and container[a] is copy[b] for a, b in zip(container, copy, strict=True))
    return all(a is b for a, b in zip(container, copy, strict=True))
