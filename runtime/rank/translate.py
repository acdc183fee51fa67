"""Translation of instruction lists to Python functions whose local variables are the slots.

An instruction becomes one line, so that the line of a traceback names the instruction at no cost:

    def f1(a):
     v0, v1 = a; a.clear()
     v2 = o0(v0, v1); v0 = None            # aten.mm.default, frees slot 0
     v3 = o1(v2, k0, k1, k2)               # comm.all_reduce_start: axes, reduce, where
     v4 = v3.wait(); v3 = None
     return [v4]

A call of a function with a kind becomes a call of the kernel that was taken for it, with the values as
arguments (`implementations/binding.py`), or of its body.

A function that depends on the microbatch takes it as a second argument, `m`.

Arguments come in a list that the function empties, so that a callee can free what its caller no longer needs. No text
of a program becomes Python text: op names, strings and lists become the globals o*, k*. Only numbers are written out,
and keyword names that are identifiers.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType

from ..errors import instruction_name
from ..program.arguments import Slot, Value, slots_in
from ..program.entries import (
    MICROBATCH,
    MICROBATCH_INDEX,
    Entry,
    depends_on_microbatch,
    microbatch_functions,
    reachable,
)
from ..program.ops import COALESCED, COLLECTIVES, MESSAGES, RANK_OPS, torch_op
from ..program.records import Function, Instruction, Location
from .in_place_sums import in_place_adds

FILENAME = "<stretto program>"
_COMMON = frozenset({*COLLECTIVES, *MESSAGES, *RANK_OPS})


@dataclass
class Translation:
    """The Python code of one entry. Its ranks share it, and bind the names in `ops` differently."""

    code: CodeType
    ops: dict[str, str] = field(default_factory=dict)
    """Python name to op name."""
    constants: dict[str, object] = field(default_factory=dict)
    lines: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Line of the generated text to (function, instruction index)."""
    text: str = ""
    kernels: dict[str, str] = field(default_factory=dict)
    """Python name to the function in whose place a kernel runs."""


INTO = "into "
"""Before the name of an op whose result is written into the memory of a state, given first."""


def translate(
    entry: Entry,
    functions: Mapping[str, Function],
    locations: Sequence[Location],
    *,
    watched: bool = False,
    kernels: Collection[str] = (),
) -> Translation:
    """Functions forward([inputs]) -> ([outputs and buffers], [saved]) and backward([saved, tangents]) -> [gradients].

    Inputs, outputs and gradients are in the program's order; the program must be valid. An entry of a pipeline has a
    forward only, which also takes tangents, and saves the gradients. With `watched`, the global
    `watch(function, index, op, *results)` is called after every instruction. Kernels run in place of the functions in
    `kernels`.
    """
    writer = _Writer(functions, locations, kernels, watched=watched)
    for name in reachable(entry.name, functions):
        if name in kernels:
            continue
        function = functions[name]
        results = f"return [{_names(function.results)}]"
        writer.function(writer.callee(name), name, function.arguments, function.code, 0, results, function.results)
    main = functions[entry.name]
    split = len(main.code) if main.backward_at is None else main.backward_at
    tangents = [argument.slot for argument in entry.inputs if argument not in entry.forward_inputs]
    taken = [argument.slot for argument in entry.forward_inputs]
    result_slots = [output.slot for output in entry.forward_outputs]
    gradients = [output.slot for output in entry.gradients]
    kept = gradients if entry.stage is not None else sorted(_needed(main.code[split:], gradients) - set(tangents))
    give = f"return [{_names(result_slots)}], [{_names(kept)}]"
    writer.function("forward", entry.name, taken, main.code[:split], 0, give, {*result_slots, *kept})
    if entry.stage is None:
        late = f"return [{_names(gradients)}]"
        writer.function("backward", entry.name, [*kept, *tangents], main.code[split:], split, late, gradients)
    text = "\n".join(writer.text) + "\n"
    code = compile(text, FILENAME, "exec")
    return Translation(code, writer.ops, writer.constants, writer.lines, text, writer.kernels)


def _microbatch(instruction: Instruction) -> str:
    """The microbatch of an instruction as Python text: of its keyword, else that of its function, or one of those."""
    microbatch = instruction.kwargs.get(MICROBATCH)
    if microbatch is not None:
        return repr(tuple(microbatch) if isinstance(microbatch, list) else microbatch)
    return f"m[{instruction.kwargs[MICROBATCH_INDEX]}]" if MICROBATCH_INDEX in instruction.kwargs else "m"


def _needed(code: Sequence[Instruction], results: Iterable[int]) -> set[int]:
    """The slots that must be set before `code` so that it can run and set `results`."""
    needed = set(results)
    for instruction in reversed(code):
        needed.difference_update(instruction.writes())
        needed.update(instruction.reads())
    return needed


def _names(slots: Iterable[int]) -> str:
    return ", ".join(f"v{slot}" for slot in slots)


def _clear(slots: Iterable[int]) -> str:
    names = [f"v{slot}" for slot in slots]
    return "; " + " = ".join([*names, "None"]) if names else ""


class _Writer:
    """Collects the Python text and the meanings of its names."""

    def __init__(
        self,
        functions: Mapping[str, Function],
        locations: Sequence[Location],
        kernels: Collection[str],
        *,
        watched: bool,
    ) -> None:
        self.text: list[str] = []
        self.ops: dict[str, str] = {}
        self.constants: dict[str, object] = {}
        self.lines: dict[int, tuple[str, int]] = {}
        self._op_names: dict[str, str] = {}
        self._constant_names: dict[tuple[type, str], str] = {}
        self._callees = {name: f"f{index}" for index, name in enumerate(functions)}
        self.kernels = {f"g{index}": name for index, name in enumerate(functions) if name in kernels}
        self._kernel_names = {function: name for name, function in self.kernels.items()}
        self._microbatch_functions = microbatch_functions(functions)
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
        self.text += [f"def {python}(a{', m' if name in self._microbatch_functions else ''}):", f" {take}"]
        grows = in_place_adds(code, arguments, kept)
        for index, instruction in enumerate(code, first):
            line = (
                self._sum(instruction, index, name) if index - first in grows else self._line(instruction, index, name)
            )
            self.text.append(f" {line}")
            self.lines[len(self.text)] = (name, index)
        self.text.append(f" {end}")

    def _line(self, instruction: Instruction, index: int, function: str) -> str:
        after = self._watch(instruction, index, function) + _clear(instruction.free)
        if instruction.op == "call" and instruction.args[0] in self._kernel_names:
            call = f"{self._kernel_names[str(instruction.args[0])]}({_names(slots_in(instruction.args[1]))})"
            return self._store(instruction, call, gives_list=True) + after
        if instruction.op == "call":
            return self._call(instruction)
        if instruction.op == "comm.wait":
            return self._store(instruction, f"{self._value(instruction.args[0])}.wait()", gives_list=False) + after
        arguments = [self._value(value) for value in instruction.args]
        if instruction.op in _COMMON:
            order = PARAMETERS[instruction.op]
            arguments += [self._value(_frozen(instruction.kwargs[key])) for key in order]
            if instruction.op not in RANK_OPS:
                arguments.append(self._constant(self._where(instruction, index, function)))
            elif depends_on_microbatch(instruction):
                arguments.append(_microbatch(instruction))
            call = f"{self._op(instruction.op)}({', '.join(arguments)})"
            return self._store(instruction, call, gives_list=instruction.op in COALESCED) + after
        op = torch_op(instruction.op)
        function_name = self._op(instruction.op)
        if instruction.into is not None:
            function_name = self._op(INTO + instruction.op)
            arguments.insert(0, f"v{instruction.into}")
        arguments += [
            f"{key}={self._value(value)}" for key, value in instruction.kwargs.items() if not keyword.iskeyword(key)
        ]
        reserved = {key: value for key, value in instruction.kwargs.items() if keyword.iskeyword(key)}
        arguments += [f"**{{{self._constant(key)}: {self._value(value)}}}" for key, value in reserved.items()]
        if op.is_factory:
            arguments.append("device=device")
        return self._store(instruction, f"{function_name}({', '.join(arguments)})", gives_list=op.gives_list) + after

    def _sum(self, instruction: Instruction, index: int, function: str) -> str:
        """An add in the memory of its first operand."""
        both = ", ".join(self._value(value) for value in instruction.args)
        return (
            self._store(instruction, f"add({both})", gives_list=False)
            + self._watch(instruction, index, function)
            + _clear(instruction.free)
        )

    def _watch(self, instruction: Instruction, index: int, function: str) -> str:
        if not (self._watched and instruction.writes()):
            return ""
        arguments = (
            f"{self._constant(function)}, {index}, {self._constant(instruction.op)}, {_names(instruction.writes())}"
        )
        return f"; watch({arguments})"

    def _call(self, instruction: Instruction) -> str:
        refs = list(slots_in(instruction.args[1]))
        early = [slot for slot in instruction.free if slot in refs and slot not in instruction.out]
        late = [slot for slot in instruction.free if slot not in early]
        callee = str(instruction.args[0])
        time = f", {_microbatch(instruction)}" if callee in self._microbatch_functions else ""
        call = self._store(instruction, f"{self._callees[callee]}(t{time})", gives_list=True)
        return f"t = [{_names(refs)}]{_clear(early)}; {call}{_clear(late)}"

    def _store(self, instruction: Instruction, call: str, *, gives_list: bool) -> str:
        if not instruction.writes():
            return call
        if not gives_list:
            return f"v{instruction.out[0]} = {call}"
        if None not in instruction.out:
            return f"{_names(instruction.writes())}{',' if len(instruction.out) == 1 else ''} = {call}"
        parts = [f"v{slot} = t[{index}]" for index, slot in enumerate(instruction.out) if slot is not None]
        return f"t = {call}; {'; '.join(parts)}; t = None"

    def _where(self, instruction: Instruction, index: int, function: str) -> str:
        where = instruction_name(instruction.op, index, function)
        if instruction.loc is None:
            return where
        place = self._locations[instruction.loc]
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


PARAMETERS = {
    "comm.all_reduce_start": ("axes", "reduce"),
    "comm.all_gather_start": ("axes", "dim"),
    "comm.reduce_scatter_start": ("axes", "dim", "reduce"),
    "comm.all_to_all_start": ("axes", "split_dim", "concat_dim"),
    "comm.permute_start": ("axes", "shift"),
    "comm.all_to_all_rows_start": ("axes", "bound", "send_counts", "receive_counts"),
    "comm.all_reduce_coalesced_start": ("axes", "reduce"),
    "comm.all_gather_coalesced_start": ("axes", "dims"),
    "comm.reduce_scatter_coalesced_start": ("axes", "dims", "reduce"),
    "comm.send": ("axis", "peer"),
    "comm.receive_start": ("axis", "peer", "size", "dtype"),
    "rank.shard": ("axes", "dim", "chunk"),
    "rank.offset": ("axes", "chunk"),
    "rank.mask": ("axes", "dim", "chunk", "extent", "fill"),
    "rank.random": ("size", "axes", "chunks", "below"),
}
"""By op: its keywords in the order of the parameters of `Communicator` or `RankOps`."""


def _frozen(value: Value) -> Value:
    return tuple(value) if isinstance(value, list) else value
