"""The implementations of kinds: ours by target, in one table, imported on use; others' where the caller asks.

A program calls functions with a kind, such as "attention" (`program/records.py`). An implementation is
something better for one target than the ops of the body: it is asked for each function, and builds a callable or
declines.

    def build(function: KindFunction, target: str) -> Kernel | None:
        if function.operands[0].dtype != "bfloat16":
            return None                                     # the body runs
        causal = function.kind.attributes["causal"]
        return lambda query, key, value: my_attention(query, key, value, causal)

    register_implementation(Implementation("mine", ("attention",), ("cuda",), build))

No program names an implementation, and none is imported because a folder asks for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points

from torch import Tensor

from ...diagnostics import StrettoError
from ..program.records import Function, Kind, SlotType

ENTRY_POINTS = "stretto.implementations"
TARGETS = ("cpu", "cuda")

Kernel = Callable[..., tuple[Tensor, ...]]
"""Takes the function's arguments in order, gives its results in order: a tuple, of one tensor too.

It is functional: it writes to no argument, and each result has the stated dtype and shape and memory of its own.
Arguments may have any strides. Results should have the strides that the body's have, else later views copy them.
"""


@dataclass(frozen=True)
class KindFunction:
    """A function of a program that has a kind, as implementations see it."""

    name: str
    kind: Kind
    body: Function
    types: tuple[SlotType | None, ...]
    """By slot of the body: its type; None where it holds no tensor."""

    @property
    def operands(self) -> tuple[SlotType, ...]:
        """The types of its arguments, which `kind.operands` names."""
        return self._of(self.body.arguments)

    @property
    def results(self) -> tuple[SlotType, ...]:
        """The types of its results, which `kind.results` names."""
        return self._of(self.body.results)

    def operand(self, name: str) -> SlotType | None:
        """The type of an argument by its name; None for an optional one that is not given."""
        return dict(zip(self.kind.operands, self.operands, strict=True)).get(name)

    def _of(self, slots: tuple[int, ...]) -> tuple[SlotType, ...]:
        types = [self.types[slot] for slot in slots]
        return tuple(each for each in types if each is not None)


@dataclass(frozen=True)
class Implementation:
    """Kernels for some kinds on some targets.

    One of several kinds, such as a forward and its backward, is taken for all functions of these kinds in a program,
    or for none, so that they may share values in a format of their own. One of a single kind is taken function by
    function.
    """

    name: str
    """For people, such as "torch's flash attention"."""
    kinds: tuple[str, ...]
    targets: tuple[str, ...]
    build: Callable[[KindFunction, str], Kernel | None]
    """The kernel for a function and a target, or None, so that another one or the body runs.

    It is called when a program is proved, too, on machines without the target: what needs the device, or takes long,
    belongs into the first call of the kernel.
    """
    workspace: Callable[[KindFunction, str], int] | None = None
    """The most bytes that a call takes beside arguments and results. Without, a proof counts what the body takes."""
    why_not: Callable[[KindFunction, str], str] | None = None
    """Why `build` declined a function, in a few words, for remarks."""


_BUILT_IN: dict[str, tuple[str, ...]] = {"cpu": ("cpu_attention:FORWARD", "cpu_attention:BACKWARD")}
"""By target: the implementations that come with the runtime, as "module:object", in the order of preference."""
_OFFERED: dict[str, tuple[str, ...]] = {"inductor": ("cpu_inductor:INDUCTOR",)}
"""By name: the implementations that come with the runtime, and are taken only where the caller asks for them."""
_REGISTERED: list[Implementation] = []
_USED: dict[str, None] = {}
"""The names of what `use_implementations` registered, in order."""


def register_implementation(implementation: Implementation) -> None:
    """Let programs of this process take an implementation; it comes before all others.

    Call it before a program is compiled or loaded, in every process. Raises StrettoError E0315 for one that names no
    kind, or a target that there is not.
    """
    if not implementation.kinds or not implementation.targets or not {*implementation.targets} <= {*TARGETS}:
        raise StrettoError(
            "E0315",
            f'implementation "{implementation.name}" is of kinds {list(implementation.kinds)} for targets '
            f"{list(implementation.targets)}",
            expected=f"at least one kind, and targets of {', '.join(TARGETS)}",
        )
    if implementation not in _REGISTERED:
        _REGISTERED.insert(0, implementation)


def use_implementations(*names: str) -> None:
    """Register what packages offer under these names, as entry points of the group `stretto.implementations`.

    "inductor" comes with the runtime: it compiles fused regions for the CPU (`cpu_inductor.py`).
    An entry point's object is an `Implementation`, or a list of several. Raises StrettoError E0315 for a name that no
    package offers, or an object that is none.
    """
    for name in names:
        if name in _OFFERED:
            _register(name, [_imported(place) for place in _OFFERED[name]])
            continue
        offered = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
        if name not in offered:
            known_names = sorted({*offered, *_OFFERED})
            near = difflib.get_close_matches(name, known_names, 1)
            known = f"offered are: {', '.join(known_names)}"
            raise StrettoError(
                "E0315", f'no package offers implementations "{name}"',
                help=f'did you mean "{near[0]}"?' if near else known,
            )  # fmt: skip
        loaded = offered[name].load()
        each = list(loaded) if isinstance(loaded, list | tuple) else [loaded]
        if not all(isinstance(one, Implementation) for one in each):
            raise StrettoError(
                "E0315",
                f'the entry point "{name}" of group "{ENTRY_POINTS}" is a {type(loaded).__name__}',
                expected="a stretto.Implementation, or a list of them",
            )
        _register(name, each)


def _register(name: str, offered: Sequence[Implementation]) -> None:
    for each in reversed(offered):
        register_implementation(each)
    _USED[name] = None


def used_implementations() -> list[str]:
    """The names that the caller gave to `use_implementations`, in order; other processes of a run take them, too."""
    return list(_USED)


def registered_kinds() -> tuple[str, ...]:
    """The kinds of what this process registered, sorted: compiles keep such idioms whole."""
    return tuple(sorted({kind for each in _REGISTERED for kind in each.kinds}))


def implementations(target: str) -> tuple[Implementation, ...]:
    """The implementations for a target, those first that are taken first."""
    registered = tuple(each for each in _REGISTERED if target in each.targets)
    return (*registered, *(_imported(place) for place in _BUILT_IN.get(target, ())))


def _imported(place: str) -> Implementation:
    module, _, name = place.partition(":")
    implementation: Implementation = getattr(import_module(f".{module}", __package__), name)
    return implementation
