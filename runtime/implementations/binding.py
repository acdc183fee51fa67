"""What runs for each function of a program that has a kind: an implementation for the target, or its body.

The choice follows from the program, the target and what is registered. Ranks may choose differently: all
implementations of a kind compute the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..program.program import Program
from .registry import Implementation, Kernel, KindFunction, implementations


@dataclass(frozen=True)
class Binding:
    """What runs for one function."""

    function: KindFunction
    implementation: Implementation | None = None
    """None: the body."""
    kernel: Kernel | None = None
    declined: tuple[str, ...] = ()
    """The implementations of its kind that did not take it: their names, and why where they say it."""

    def workspace(self, target: str) -> int | None:
        """The bytes that a call takes beside arguments and results; None where only the body's are known."""
        if self.implementation is None or self.implementation.workspace is None:
            return None
        return self.implementation.workspace(self.function, target)


def bindings(program: Program, target: str) -> Mapping[str, Binding]:
    """By function with a kind: what runs on a target. The program must be valid.

    A program that does not state the types of its slots runs bodies alone.
    """
    known = implementations(target)
    cached = program.derived.get(f"implementations on {target}")
    if isinstance(cached, _Chosen) and cached.known == known:
        return cached.bindings
    chosen = _Chosen(known, _choose(kind_functions(program), target, known))
    program.derived[f"implementations on {target}"] = chosen
    return chosen.bindings


def kind_functions(program: Program) -> dict[str, KindFunction]:
    """The functions of a program that have a kind and state their types, by name."""
    found = {}
    for name, function in program.functions.items():
        if function.kind is not None and function.types:
            types = tuple(None if index is None else program.types[index] for index in function.types)
            ports = [types[slot] for slot in (*function.arguments, *function.results)]
            if all(each is not None and not each.is_future for each in ports):
                found[name] = KindFunction(name, function.kind, function, types)
    return found


@dataclass(frozen=True)
class _Chosen:
    """Bindings, and the implementations that they were chosen from."""

    known: tuple[Implementation, ...]
    bindings: dict[str, Binding]


def _choose(
    functions: Mapping[str, KindFunction], target: str, known: tuple[Implementation, ...]
) -> dict[str, Binding]:
    found = {name: Binding(function) for name, function in functions.items()}
    for implementation in known:
        own = [name for name, function in functions.items() if function.kind.name in implementation.kinds]
        together = len(implementation.kinds) > 1
        kernels = {
            name: implementation.build(functions[name], target) if found[name].kernel is None else None for name in own
        }
        takes_all = all(kernels.values())
        for name, kernel in kernels.items():
            if kernel is not None and (takes_all or not together):
                found[name] = replace(found[name], implementation=implementation, kernel=kernel)
            elif found[name].kernel is None:
                found[name] = replace(
                    found[name], declined=(*found[name].declined, _declined(implementation, functions[name], target))
                )
    return found


def _declined(implementation: Implementation, function: KindFunction, target: str) -> str:
    why = "" if implementation.why_not is None else implementation.why_not(function, target)
    return f"{implementation.name} ({why})" if why else implementation.name
