"""What faults of saved folders are made with: instructions found by what they do, and folders sealed again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from stretto.runtime.program.folder import MANIFEST, manifest_hash
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Instruction, Output

from ..program_editing import Place, renamed

Plant = Callable[[Path], None]
"""Plants a fault in a saved folder; the folder's hashes are right again afterwards."""
Matches = Callable[[Instruction], bool]


def in_program(edit: Callable[[Program], Program]) -> Plant:
    """A fault of `program.json`; the module in `ir.mlir` and the reference stay as they were compiled."""

    def plant(folder: Path) -> None:
        right = Program.load(folder)
        wrong = edit(right)
        assert wrong is not right
        replace(wrong, ir=right.ir, loaded_hash="", initial=right.weights).save(folder)

    return plant


def in_json(file: str, edit: Callable[[Any], None]) -> Plant:
    """A fault of another file of the folder, which `edit` changes in place."""

    def plant(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text())
        before = json.dumps(content)
        edit(content)
        assert json.dumps(content) != before
        path.write_text(json.dumps(content))
        seal(folder)

    return plant


def in_text(old: str, new: str) -> Plant:
    """A fault of the module in `ir.mlir`: the first `old` becomes `new`."""

    def plant(folder: Path) -> None:
        text = (folder / "ir.mlir").read_text()
        assert old in text
        (folder / "ir.mlir").write_text(text.replace(old, new, 1))
        seal(folder)

    return plant


def seal(folder: Path) -> None:
    """Make the hashes of the manifest right again."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {name: sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "hash": manifest_hash(manifest)}))


def function(program: Program, name: str) -> Place:
    """A function of the program, as the other faults of programs take it."""
    return Place(program, name, Random(0))


def found(program: Program, matches: Matches, count: int = 0, among: str = "") -> tuple[Place, int]:
    """The instruction of a kind, the first or a later one, in functions whose names begin with `among`."""
    places = [
        (function(program, name), index)
        for name, body in program.functions.items()
        if name.startswith(among)
        for index, instruction in enumerate(body.code)
        if matches(instruction)
    ]
    return places[count]


def changed(
    matches: Matches, edit: Callable[[Instruction], Instruction], count: int = 0, among: str = ""
) -> Callable[[Program], Program]:
    """An edit of one instruction."""

    def in_place(program: Program) -> Program:
        place, index = found(program, matches, count, among)
        return place.replaced(index, edit(place.code[index]))

    return in_place


def named(op: str) -> Matches:
    """Instructions that call an op."""
    return lambda instruction: instruction.op == op


def calling(name: str) -> Matches:
    """Calls of a function of the program."""
    return lambda instruction: instruction.op == "call" and instruction.args[0] == name


def with_keyword(**keywords: object) -> Callable[[Instruction], Instruction]:
    """An instruction with other constants, by keyword."""
    return lambda instruction: replace(instruction, kwargs={**instruction.kwargs, **keywords})


def with_argument(index: int, value: object) -> Callable[[Instruction], Instruction]:
    """An instruction with another argument at a position."""

    def edit(instruction: Instruction) -> Instruction:
        arguments = list(instruction.args)
        arguments[index] = value
        return replace(instruction, args=tuple(arguments))

    return edit


def swapped(instruction: Instruction) -> Instruction:
    """An instruction with its first two arguments in each other's place."""
    first, second, *others = instruction.args
    return replace(instruction, args=(second, first, *others))


def gradient(program: Program, name: str) -> Output:
    """The output that is the gradient of a parameter."""
    return next(output for output in program.results_of_kind("gradient") if output.name == name)


def reduction_of(program: Program, name: str, axis: str = "dp") -> tuple[Place, int]:
    """Where the all-reduce of a gradient over an axis starts, in a program without a pipeline."""
    place, slot = function(program, "main"), gradient(program, name).slot
    wait = next(i for i, c in enumerate(place.code) if slot in c.writes())
    [future] = place.code[wait].reads()
    start = next(i for i, c in enumerate(place.code) if future in c.writes())
    assert axis in place.code[start].kwargs["axes"]  # type: ignore[operator]
    return place, start


def inserted(place: Place, index: int, instruction: Instruction) -> Program:
    """The program with an instruction before another one; its result takes the next free slot."""
    code = place.code
    begins = place.function.backward_at
    body = replace(
        place.function,
        slots=place.function.slots + 1,
        code=(*code[:index], replace(instruction, out=(place.function.slots,)), *code[index:]),
        backward_at=begins if begins is None or index > begins else begins + (index < begins),
    )
    return place.with_function(body)


def read_instead(program: Program, name: str, first: int, old: int, new: int) -> Program:
    """The program in which instructions of a function from `first` on read, and free, another slot."""
    place = function(program, name)
    code = [
        c if i < first else replace(renamed(c, old, new), free=tuple(new if slot == old else slot for slot in c.free))
        for i, c in enumerate(place.code)
    ]
    return place.with_function(replace(place.function, code=tuple(code)))


def exchanged(names: Mapping[str, str]) -> Callable[[Any], Any]:
    """Records with their names exchanged."""
    both = {**names, **{new: old for old, new in names.items()}}
    return lambda record: replace(record, name=both.get(record.name, record.name))
