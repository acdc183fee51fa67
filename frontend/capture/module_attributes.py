"""What a traced forward does with attributes of its modules that are neither parameters, buffers nor modules.

What it reads is fixed in the graph. What it sets, and what it changes of the lists, dicts and sets that they hold,
belongs to Python, which a program does not run: all of it is noted and taken back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

TORCHS = frozenset(vars(nn.Module()))
"""The attributes that every module has; what Stretto wants of them is asked for elsewhere."""
_HOOKS = tuple(name for name in sorted(TORCHS) if "_hooks" in name)
"""Where torch keeps a module's hooks. What a forward registers goes with the flag that says it has done so."""
_ABSENT = object()


@dataclass(frozen=True)
class Rebound:
    """An attribute that holds another value than before, or was not there, or is gone."""

    path: str
    """Module path and name, such as "encoder.steps"."""
    before: Any
    after: Any
    """None where there was or is none."""
    torchs: bool
    """Whether it is bookkeeping of torch's own, such as the list of weights that an LSTM keeps."""


class Snapshot:
    """The attributes of a model's modules, and the contents of what they hold, at one time."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._attributes = {path: _attributes(module) for path, module in self._modules.items()}
        self._contents: dict[int, tuple[str, Any, Any]] = {}
        self._hooks = [
            (held, dict(held))
            for module in self._modules.values()
            for held in map(vars(module).get, _HOOKS)
            if held is not None
        ]
        for path, attributes in self._attributes.items():
            for name, value in attributes.items():
                self._note(joined(path, name), value)

    def take_back(self) -> tuple[list[Rebound], dict[str, str]]:
        """Put everything back; what was bound anew, and by path the kind of each container that was changed."""
        for held, hooks in self._hooks:
            held.clear()
            held.update(hooks)
        rebound = []
        for path, module in self._modules.items():
            before, after = self._attributes[path], _attributes(module)
            for name in dict.fromkeys((*before, *after)):
                old, new = before.get(name, _ABSENT), after.get(name, _ABSENT)
                if old is new:
                    continue
                was, now = (None if each is _ABSENT else each for each in (old, new))
                rebound.append(Rebound(joined(path, name), was, now, _is_torchs(module, name)))
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
        """Remember what a container holds, and those in it."""
        if not isinstance(value, list | deque | dict | set) or id(value) in self._contents:
            return
        copy = dict(value) if isinstance(value, dict) else set(value) if isinstance(value, set) else list(value)
        self._contents[id(value)] = path, value, copy
        for key, each in copy.items() if isinstance(copy, dict) else enumerate(copy):
            self._note(f"{path}[{key!r}]", each)


class _NotingLookup:
    """In place of a class's `__getattribute__`; no function, which torch's tracer of Python would stop at."""

    def __init__(self, paths: Mapping[int, str], into: dict[str, dict[str, None]]) -> None:
        self._paths = paths
        self._into = into

    def __get__(self, module: nn.Module | None, cls: type[nn.Module]) -> Callable[..., Any]:
        return self.look if module is None else partial(self.look, module)

    def look(self, module: nn.Module, name: str) -> Any:
        """The attribute of the module, as it is found without this."""
        path = self._paths.get(id(module))
        if path is not None and name not in TORCHS and not name.startswith("__"):
            self._into.setdefault(path, {})[name] = None
        return object.__getattribute__(module, name)


@contextmanager
def noted_reads(model: nn.Module, into: dict[str, dict[str, None]]) -> Iterator[None]:
    """Inside, the names are noted by which attributes of the model's modules are asked for, by module path."""
    paths = {id(module): path for path, module in model.named_modules()}
    outer = vars(nn.Module).get("__getattribute__")
    type.__setattr__(nn.Module, "__getattribute__", _NotingLookup(paths, into))
    try:
        yield
    finally:
        if outer is None:
            type.__delattr__(nn.Module, "__getattribute__")
        else:
            type.__setattr__(nn.Module, "__getattribute__", outer)


def joined(path: str, name: str) -> str:
    """The name of an attribute, or a buffer, after the path of its module."""
    return f"{path}.{name}" if path else name


def _is_torchs(module: nn.Module, name: str) -> bool:
    """Whether a private attribute may be one of torch's classes that the module is of."""
    classes = [each.__module__ for each in type(module).__mro__ if each is not nn.Module]
    ours = [each for each in classes if each.startswith("torch.nn.") and not each.endswith(".container")]
    return name.startswith("_") and bool(ours)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in TORCHS or name == "training"}


def _same_contents(container: Any, copy: Any) -> bool:
    """Whether a container holds the very values of a copy, in the same order."""
    if isinstance(container, set):
        return bool(container == copy)
    if len(container) != len(copy):
        return False
    if isinstance(container, dict):
        return all(a == b and container[a] is copy[b] for a, b in zip(container, copy, strict=True))
    return all(a is b for a, b in zip(container, copy, strict=True))
