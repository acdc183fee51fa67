"""The programs of a model by entry name, and their folder.

    DIR/manifest.json         format, versions, names of the entries, the SHA-256 of the files here, a hash
    DIR/weights.safetensors   first values of parameters, buffers and states, once for all entries (optional)
    DIR/NAME/                 the program folder of an entry; its weights are its constants

The manifest has the hash of each entry's manifest, which has those of the entry's files: none can be replaced alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ..errors import ProgramError
from ..program.arguments import Json
from ..program.entries import MAIN
from ..program.folder import (
    ENTRIES,
    MANIFEST,
    WEIGHTS,
    WeightsFile,
    check_weights,
    manifest_hash,
    manifest_of,
    seal,
    sums_and_hash,
    write_folder,
    write_weights,
)
from ..program.program import Program
from ..program.versions import FORMAT
from ..reading.folder_files import altered
from .shared_tensors import SHARED, check_shared, first_values

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_MOST_ENTRIES = 64


@dataclass(frozen=True)
class ProgramSet:
    """Programs by the name of their entry. They have one mesh, and agree on the tensors that they share."""

    programs: Mapping[str, Program]
    folder: Path | None = None

    @staticmethod
    def of(programs: Mapping[str, Program]) -> ProgramSet:
        """Programs that were compiled from one model. Raises ProgramError E0316 and E0317."""
        names = list(programs)
        wrong = next((name for name in names if _NAME.fullmatch(name) is None), None)
        if wrong is not None or not names or len(names) > _MOST_ENTRIES:
            raise ProgramError(
                "E0317",
                f"an entry has the name {wrong!r}" if wrong is not None else f"there are {len(names)} entries",
                expected=f"1 to {_MOST_ENTRIES} names of letters, digits and underscores",
                help="a name is a folder of the program, such as prefill",
            )
        check_shared(programs)
        return ProgramSet(dict(programs))

    @staticmethod
    def load(folder: str | Path) -> ProgramSet:
        """Read a folder; the program of a folder without named entries is that of `main`.

        Raises what `Program.load` does, and E0316 where entries disagree on what they share.
        """
        folder = Path(folder)
        manifest = manifest_of(folder)
        if ENTRIES not in manifest:
            return ProgramSet({MAIN: Program.load(folder)}, folder)
        sums, digest = sums_and_hash(manifest, folder)
        names = _entry_names(folder, manifest[ENTRIES], sums)
        if manifest_hash(manifest) != digest:
            raise altered(folder, MANIFEST)
        if WEIGHTS in sums:
            check_weights(folder, sums[WEIGHTS])
        elif (folder / WEIGHTS).exists():
            raise altered(folder, WEIGHTS)
        shared = WeightsFile(folder, sums.get(WEIGHTS, ""))
        programs = {
            name: Program.load(folder / name, hashed=sums[f"{name}/{MANIFEST}"], shared=shared) for name in names
        }
        return ProgramSet(ProgramSet.of(programs).programs, folder)

    def save(self, folder: str | Path) -> None:
        """Write the folder atomically. Replaces an older program there; raises ProgramError E0307 for anything else."""
        if list(self.programs) == [MAIN]:
            self.programs[MAIN].save(folder)
        else:
            write_folder(Path(folder), self._fill)

    def _fill(self, fresh: Path) -> None:
        files = []
        for name, program in self.programs.items():
            (fresh / name).mkdir()
            shared = {each.name for each in program.inputs if each.kind in SHARED}
            own = {key: value for key, value in program.weights.items() if key not in shared}
            program.write_files(fresh / name, own)
            files.append(fresh / name / MANIFEST)
        if self.first_values:
            write_weights(fresh / WEIGHTS, self.first_values)
            files.append(fresh / WEIGHTS)
        made_by = next(iter(self.programs.values())).manifest
        versions: dict[str, Json] = {"format": FORMAT, "stretto": made_by.stretto, "torch": made_by.torch}
        seal(fresh, {**versions, ENTRIES: list(self.programs)}, files)

    @cached_property
    def first_values(self) -> Mapping[str, Tensor]:
        """First values of parameters, buffers and states by name, as far as the programs have them."""
        return first_values(self.programs)

    @property
    def has_names(self) -> bool:
        """Whether its entries were named; else it is the one program of a folder."""
        return list(self.programs) != [MAIN]

    def program(self, entry: str | None = None) -> Program:
        """The program of an entry; without a name, the only one. Raises ProgramError E0319."""
        if entry is None and len(self.programs) == 1:
            return next(iter(self.programs.values()))
        if entry is not None and entry in self.programs:
            return self.programs[entry]
        where, names = f"'{self.folder}'" if self.folder else "the program", list(self.programs)
        near = difflib.get_close_matches(entry or "", names, 1) or names
        raise ProgramError(
            "E0319",
            f"{where} has several entries: {', '.join(names)}" if entry is None else f"{where} has no entry '{entry}'",
            expected="the name of one" if entry is None else ", ".join(names),
            help=f"add --entry {near[0]}" if entry is None else f"did you mean '{near[0]}'?",
        )

    def selected(self, entry: str | None) -> ProgramSet:
        """The set of the one entry of this name; all of it without a name. Raises ProgramError E0319."""
        return self if entry is None else ProgramSet({entry: self.program(entry)}, self.folder)

    def on(self, target: str | None) -> ProgramSet:
        """The programs for another target; see `Program.on`."""
        return self if target is None else replace(self, programs={name: each.on(target) for name, each in self})

    def __iter__(self) -> Iterator[tuple[str, Program]]:
        return iter(self.programs.items())


def load_entry(folder: str | Path, entry: str | None) -> Program:
    """The program of an entry of a folder. Raises what `ProgramSet.load` and `ProgramSet.program` do."""
    return ProgramSet.load(folder).program(entry)


def _entry_names(folder: Path, listed: object, sums: Mapping[str, str]) -> list[str]:
    """The names that a manifest lists, if its files are those of these entries. Raises ProgramError E0306."""
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    valid = bool(names) and names == listed and len({*names}) == len(names) <= _MOST_ENTRIES
    if not valid or any(_NAME.fullmatch(name) is None for name in names):
        raise ProgramError(
            "E0306",
            f"the program in '{folder}' is malformed: '{ENTRIES}' of its '{MANIFEST}' are not 1 to {_MOST_ENTRIES} "
            "different names",
        )
    wanted = {f"{name}/{MANIFEST}" for name in names}
    for name in sorted(wanted - sums.keys()):
        raise ProgramError("E0306", f"the program in '{folder}' is malformed: its '{MANIFEST}' does not list '{name}'")
    for name in sorted(sums.keys() - wanted - {WEIGHTS}):
        raise ProgramError(
            "E0306", f"the program in '{folder}' is malformed: its '{MANIFEST}' lists the unknown file '{name}'"
        )
    return names
