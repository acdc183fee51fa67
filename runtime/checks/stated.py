"""What a check compares, by the reference and not by the program: else a program could leave out what is wrong.

Who is trained, which outputs are differentiated, the dtype that results are judged in, and the ranges of integer inputs
come from the capture, which no pass and no lowering has touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..errors import RunError
from ..program.arguments import Json
from ..program.program import Program
from ..program.records import Input
from ..program.reference_records import Reference, Stated
from .report import CheckRow, Verdict

Ranges = Mapping[str, tuple[int, int]]
"""By integer input, the range [low, high) that the caller states."""


def as_stated(program: Program, reference: Reference, ranges: Ranges) -> Program:
    """The program with the inputs and the manifest that the reference states; itself where it states nothing.

    Only for reading what is to be compared: the program that runs is another. Raises RunError E0349 for a range of
    something else than an input.
    """
    known = {argument.name for argument in reference.inputs if argument.kind == "input"}
    for name in ranges:
        if name not in known:
            raise RunError(
                "E0349", f'a range is given for "{name}", which is no input', expected=", ".join(sorted(known))
            )
    stated = reference.stated
    manifest = program.manifest
    known_ranges = manifest.arguments.get("inputs", {}) if stated is None else stated.ranges
    described = {**(known_ranges if isinstance(known_ranges, Mapping) else {}), **_described(ranges, known_ranges)}
    manifest = replace(manifest, arguments={**manifest.arguments, "inputs": described})
    if stated is None:
        return replace(program, manifest=manifest)
    inputs = [_trained(argument, stated) for argument in program.inputs if argument.kind != "tangent"]
    inputs += [Input("", "tangent", (), stated.dtype, 0, index=index) for index in stated.differentiated]
    return replace(program, manifest=replace(manifest, dtype=stated.dtype, mode=stated.mode), inputs=tuple(inputs))


def _described(ranges: Ranges, known_ranges: Json) -> dict[str, Json]:
    described: dict[str, Json] = {}
    for name, (low, high) in ranges.items():
        before = known_ranges.get(name) if isinstance(known_ranges, Mapping) else None
        described[name] = {**(before if isinstance(before, Mapping) else {}), "low": low, "high": high}
    return described


def _trained(argument: Input, stated: Stated) -> Input:
    if argument.kind == "parameter":
        return replace(argument, requires_grad=argument.name in stated.trained)
    if argument.kind == "input":
        return replace(argument, requires_grad=argument.name in stated.inputs_with_gradients)
    return argument


def left_out(program: Program, reference: Reference) -> list[CheckRow]:
    """A row for each tensor of the reference that the program neither takes nor returns: nothing can be run then."""
    returned = {("output", str(output.index)) for output in program.results_of_kind("output")}
    returned |= {("buffer", output.name) for output in program.outputs if output.kind in ("buffer", "state")}
    wanted = [(o.kind, o.name if o.kind == "buffer" else str(o.index)) for o in reference.outputs]
    rows = [
        _missing(kind, name, "the program does not return it") for kind, name in wanted if (kind, name) not in returned
    ]
    taken = {argument.name for argument in program.of_kind("parameter")}
    trained = () if reference.stated is None else reference.stated.trained
    return rows + [_missing("parameter", name, "the program does not take it") for name in trained if name not in taken]


def contradictions(program: Program, reference: Reference) -> list[CheckRow]:
    """A row for each statement of the reference that asks for less than the program says of itself."""
    stated, manifest = reference.stated, program.manifest
    if stated is None:
        return []
    pairs = (("mode", stated.mode, manifest.mode), ("dtype", stated.dtype, manifest.dtype))
    rows = [
        _contradicts(what, f"the reference states {said}, and the manifest {own}")
        for what, said, own in pairs
        if said != own
    ]
    tangents = {argument.index for argument in program.of_kind("tangent")}
    if stated.mode == "train" and not tangents <= set(stated.differentiated):
        rows.append(_contradicts("differentiated", "the program takes tangents of outputs for which it states none"))
    return rows


def _contradicts(what: str, note: str) -> CheckRow:
    return CheckRow("reference", what, math.inf, Verdict.DIFFERS, note)


def without_a_row(rows: Sequence[CheckRow], reference: Reference) -> list[CheckRow]:
    """A row for each trained parameter of which no gradient was compared."""
    stated = reference.stated
    if stated is None or stated.mode != "train":
        return []
    have = {(row.kind, row.name) for row in rows}
    unused = "no gradient on either side: no differentiated output depends on it"
    return [
        CheckRow("gradient", name, 0.0, Verdict.NOT_CHECKED, unused)
        for name in stated.trained
        if ("gradient", name) not in have
    ]


def _missing(kind: str, name: str, note: str) -> CheckRow:
    return CheckRow(kind, name, math.inf, Verdict.DIFFERS, note)
