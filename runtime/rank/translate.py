"""From instruction lists to Python functions whose local variables are the slots.

An instruction becomes one line, so that the line of a traceback is the instruction, and nothing is paid for that:

    def f1(a):
     v0, v1 = a; a.clear()
     v2 = o0(v0, v1); v0 = None            # aten.mm.default, frees slot 0
     v3 = o1(v2, k0, k1, k2)               # comm.all_reduce_start: axes, reduce, where
     v4 = v3.wait(); v3 = None
     return [v4]

A function that asks which microbatch it is called for takes that as a second argument, `m`.

Arguments come in a list that the function empties, so that a callee can free what its caller no longer holds. No text
of a program becomes text of a function: op names, strings, lists become the globals o*, k*; only numbers are written
out, and keyword names that are identifiers.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType

from ..errors import instruction_name
from ..program.arguments import Slot, Value, slots_in
from ..program.entries import MICROBATCH, TURN, Entry, is_timed, reachable, timed_functions
from ..program.ops import COLLECTIVES, MESSAGES, RANK_OPS, torch_op
from ..program.records import Function, Instruction, Location
from .in_place_sums import growing

FILENAME = "<stretto program>"
_COMMON = frozenset({*COLLECTIVES, *MESSAGES, *RANK_OPS})


@dataclass
class Translation:
    """The Python of one entry: shared by its ranks, which differ by what the names in `ops` stand for."""

    code: CodeType
    ops: dict[str, str] = field(default_factory=dict)
    """Python name to op name."""
    constants: dict[str, object] = field(default_factory=dict)
    lines: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Line of the generated text to (function, instruction index)."""
    text: str = ""


def translate(
    entry: Entry, functions: Mapping[str, Function], locations: Sequence[Location], *, watched: bool = False
) -> Translation:
    """Functions forward([inputs]) -> ([outputs and buffers], [saved]) and backward([saved, tangents]) -> [gradients].

    Inputs, outputs and gradients are in the program's order; the program must be valid. An entry of a pipeline has a
    forward only, which takes tangents, too, and saves the gradients. Where it is `watched`, a global
    `watch(function, index, op, *results)` is called after every instruction.
    """
    writer = _Writer(functions, locations, watched=watched)
    for name in reachable(entry.name, functions):
        function = functions[name]
        results = f"return [{_names(function.results)}]"
        writer.function(writer.callee(name), name, function.arguments, function.code, 0, results, function.results)
    main = functions[entry.name]
    split = len(main.code) if main.backward_at is None else main.backward_at
    tangents = [each.slot for each in entry.inputs if each not in entry.early]
    taken = [each.slot for each in entry.early]
    given = [each.slot for each in entry.results]
    gradients = [each.slot for each in entry.gradients]
    kept = gradients if entry.stage is not None else sorted(_needed(main.code[split:], gradients) - set(tangents))
    give = f"return [{_names(given)}], [{_names(kept)}]"
    writer.function("forward", entry.name, taken, main.code[:split], 0, give, {*given, *kept})
    if entry.stage is None:
        late = f"return [{_names(gradients)}]"
        writer.function("backward", entry.name, [*kept, *tangents], main.code[split:], split, late, gradients)
    text = "\n".join(writer.text) + "\n"
    return Translation(compile(text, FILENAME, "exec"), writer.ops, writer.constants, writer.lines, text)


def _microbatch(each: Instruction) -> str:
    """The microbatch that an instruction is about, as Python: what a call says, else its function's, or one of them."""
    said = each.kwargs.get(MICROBATCH)
    if said is not None:
        return repr(tuple(said) if isinstance(said, list) else said)
    return f"m[{each.kwargs[TURN]}]" if TURN in each.kwargs else "m"


def _needed(code: Sequence[Instruction], results: Iterable[int]) -> set[int]:
    """The slots that must be set before `code`, for it to run and give `results`."""
    needed = set(results)
    for each in reversed(code):
        needed.difference_update(each.writes())
        needed.update(each.reads())
    return needed


def _names(slots: Iterable[int]) -> str:
    return ", ".join(f"v{slot}" for slot in slots)


def _clear(slots: Iterable[int]) -> str:
    names = [f"v{slot}" for slot in slots]
    return "; " + " = ".join([*names, "None"]) if names else ""


class _Writer:
    """Collects the text, and what its names stand for."""

    def __init__(self, functions: Mapping[str, Function], locations: Sequence[Location], *, watched: bool) -> None:
        self.text: list[str] = []
        self.ops: dict[str, str] = {}
        self.constants: dict[str, object] = {}
        self.lines: dict[int, tuple[str, int]] = {}
        self._op_names: dict[str, str] = {}
        self._constant_names: dict[tuple[type, str], str] = {}
        self._callees = {name: f"f{at}" for at, name in enumerate(functions)}
        self._timed = timed_functions(functions)
        self._locations = locations
        self._watched = watched

    def callee(self, name: str) -> str:
        """The Python name of a function of the program."""
        return self._callees[name]

    def function(
        self,
        python: str,
        name: str,
        arguments: Sequence[int],
        code: Sequence[Instruction],
        first: int,
        end: str,
        kept: Collection[int],
    ) -> None:
        """Write one function; `first` is the index of its first instruction in the function `name`.

        It ends with `end`, which reads the slots in `kept`.
        """
        take = f"{_names(arguments)}{',' if len(arguments) == 1 else ''} = a; a.clear()" if arguments else "pass"
        self.text += [f"def {python}(a{', m' if name in self._timed else ''}):", f" {take}"]
        grows = growing(code, arguments, kept)
        for index, each in enumerate(code, first):
            line = self._sum(each, index, name) if index - first in grows else self._line(each, index, name)
            self.text.append(f" {line}")
            self.lines[len(self.text)] = (name, index)
        self.text.append(f" {end}")

    def _line(self, each: Instruction, index: int, function: str) -> str:
        if each.op == "call":
            return self._call(each)
        after = self._watch(each, index, function) + _clear(each.free)
        if each.op == "comm.wait":
            return self._store(each, f"{self._value(each.args[0])}.wait()", gives_list=False) + after
        arguments = [self._value(value) for value in each.args]
        if each.op in _COMMON:
            order = _PARAMETERS[each.op]
            arguments += [self._value(_frozen(each.kwargs[key])) for key in order]
            if each.op not in RANK_OPS:
                arguments.append(self._constant(self._where(each, index, function)))
            elif is_timed(each):
                arguments.append(_microbatch(each))
            return self._store(each, f"{self._op(each.op)}({', '.join(arguments)})", gives_list=False) + after
        op = torch_op(each.op)
        arguments += [f"{key}={self._value(value)}" for key, value in each.kwargs.items() if not keyword.iskeyword(key)]
        odd = {key: value for key, value in each.kwargs.items() if keyword.iskeyword(key)}
        arguments += [f"**{{{self._constant(key)}: {self._value(value)}}}" for key, value in odd.items()]
        if op.is_factory:
            arguments.append("device=device")
        return self._store(each, f"{self._op(each.op)}({', '.join(arguments)})", gives_list=op.gives_list) + after

    def _sum(self, each: Instruction, index: int, function: str) -> str:
        """An add in the memory of its first operand."""
        both = ", ".join(self._value(value) for value in each.args)
        return (
            self._store(each, f"add({both})", gives_list=False) + self._watch(each, index, function) + _clear(each.free)
        )

    def _watch(self, each: Instruction, index: int, function: str) -> str:
        if not (self._watched and each.writes()):
            return ""
        told = f"{self._constant(function)}, {index}, {self._constant(each.op)}, {_names(each.writes())}"
        return f"; watch({told})"

    def _call(self, each: Instruction) -> str:
        refs = list(slots_in(each.args[1]))
        early = [slot for slot in each.free if slot in refs and slot not in each.out]
        late = [slot for slot in each.free if slot not in early]
        callee = str(each.args[0])
        time = f", {_microbatch(each)}" if callee in self._timed else ""
        call = self._store(each, f"{self._callees[callee]}(t{time})", gives_list=True)
        return f"t = [{_names(refs)}]{_clear(early)}; {call}{_clear(late)}"

    def _store(self, each: Instruction, call: str, *, gives_list: bool) -> str:
        if not each.writes():
            return call
        if not gives_list:
            return f"v{each.out[0]} = {call}"
        if None not in each.out:
            return f"{_names(each.writes())}{',' if len(each.out) == 1 else ''} = {call}"
        parts = [f"v{slot} = t[{at}]" for at, slot in enumerate(each.out) if slot is not None]
        return f"t = {call}; {'; '.join(parts)}; t = None"

    def _where(self, each: Instruction, index: int, function: str) -> str:
        where = instruction_name(each.op, index, function)
        if each.loc is None:
            return where
        place = self._locations[each.loc]
        return f"{where} from {place.file}:{place.line}" + (f" in {place.module}" if place.module else "")

    def _op(self, op: str) -> str:
        if op not in self._op_names:
            self._op_names[op] = name = f"o{len(self.ops)}"
            self.ops[name] = op
        return self._op_names[op]

    def _value(self, value: Value) -> str:
        match value:
            case Slot(index):
                return f"v{index}"
            case None | bool() | int():
                return repr(value)
            case float() if math.isfinite(value):
                return repr(value)
            case list() | tuple() if any(True for _ in slots_in(value)):
                return f"[{', '.join(self._value(part) for part in value)}]"
            case _:
                return self._constant(value)

    def _constant(self, value: object) -> str:
        key = (type(value), repr(value))
        if key not in self._constant_names:
            self._constant_names[key] = name = f"k{len(self.constants)}"
            self.constants[name] = value
        return self._constant_names[key]


_PARAMETERS = {
    "comm.all_reduce_start": ("axes", "reduce"),
    "comm.all_gather_start": ("axes", "dim"),
    "comm.reduce_scatter_start": ("axes", "dim", "reduce"),
    "comm.all_to_all_start": ("axes", "split_dim", "concat_dim"),
    "comm.send": ("axis", "peer"),
    "comm.receive_start": ("axis", "peer", "size", "dtype"),
    "rank.shard": ("axes", "dim", "chunk"),
    "rank.offset": ("axes", "chunk"),
    "rank.mask": ("axes", "dim", "chunk", "extent", "fill"),
    "rank.random": ("size", "axes", "chunks", "below"),
}
"""The order in which communicators and rank ops take their keywords."""


def _frozen(value: Value) -> Value:
    return tuple(value) if isinstance(value, list) else value
