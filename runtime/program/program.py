"""A program: what every rank runs, as data. A folder of JSON and safetensors that needs no compiler to run:

- manifest.json   format, versions, target, mode, dtype, mesh, the SHA-256 of every other file, and a hash of it all
- program.json    inputs, outputs, functions (instruction lists), source locations
- ir.mlir         the final IR, for people; remarks.json: what the passes said
- reference.json  the single-device forward; weights.safetensors: initial values by name (optional)
- sizes.json      which numbers of program.json and reference.json follow from named sizes (optional)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ..errors import ProgramError
from .arguments import Json
from .entries import Entry, entries
from .folder import read_files, read_weights, write_folder
from .json_fields import Fields, Malformed
from .mesh import RankMesh
from .named_sizes import Symbolic, bound, bound_functions, bound_inputs, bound_outputs
from .records import Function, Input, Location, Output, Pipeline, Reference
from .validate import validate

FORMAT = 1
"""The newest program format that this version reads, and the one it writes."""


@dataclass(frozen=True)
class Manifest:
    """What a program is and what it was made from."""

    mode: str
    """ "train" or "infer"."""
    dtype: str
    mesh: tuple[tuple[str, int], ...]
    target: str = "cpu"
    stretto: str = ""
    torch: str = ""
    arguments: Mapping[str, Json] = field(default_factory=dict)
    source: Mapping[str, Json] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> dict[str, Json]:
        return {
            "format": self.format, "stretto": self.stretto, "torch": self.torch, "target": self.target,
            "mode": self.mode, "dtype": self.dtype, "arguments": dict(self.arguments), "source": dict(self.source),
            "mesh": [[name, size] for name, size in self.mesh],
        }  # fmt: skip

    @staticmethod
    def from_json(value: object) -> Manifest:
        fields = Fields(value, "manifest.json")
        return Manifest(
            mode=fields.text("mode"), dtype=fields.text("dtype"), mesh=fields.each("mesh", _axis),
            target=fields.text("target"), stretto=fields.text("stretto"), torch=fields.text("torch"),
            arguments=fields.mapping("arguments"), source=fields.mapping("source"),  # type: ignore[arg-type]
            format=fields.whole("format"),
        )  # fmt: skip


@dataclass(frozen=True)
class Program:
    """A loaded program, or one just compiled that may never see a disk."""

    manifest: Manifest
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    functions: Mapping[str, Function]
    locations: tuple[Location, ...] = ()
    ir: str = ""
    remarks: Json = ()
    reference: Json = None
    """The JSON of `reference.json`; `single_device` is its decoded form."""
    initial: Mapping[str, Tensor] | None = None
    """Initial values by name, when the program was not loaded from a folder; `weights` is where to read them."""
    symbolic: Symbolic | None = None
    """Its named sizes, where it has any; `bind` makes of it the program for other ones."""
    pipeline: Pipeline | None = None
    """Where its ranks take turns: who begins where."""
    folder: Path | None = None
    loaded_hash: str = ""

    @staticmethod
    def load(folder: str | Path) -> Program:
        """Read a program folder; raises ProgramError when it is not one, is truncated, altered or of a newer format."""
        folder = Path(folder)
        files, manifest, digest = read_files(folder, FORMAT)
        try:
            program = _from_json(Manifest.from_json(manifest), files)
        except Malformed as error:
            raise ProgramError("E0306", f"the program in '{folder}' is malformed: {error}") from None
        program = replace(program, folder=folder, loaded_hash=digest)
        return program.validated

    def save(self, folder: str | Path) -> None:
        """Write the folder whole or not at all; an older program there is replaced, anything else is refused."""
        write_folder(Path(folder), self.manifest.to_json(), self._texts(), self.weights)

    @cached_property
    def hash(self) -> str:
        """What ranks compare: the manifest's hash when loaded, else SHA-256 over mesh, tensors and instructions."""
        if self.loaded_hash:
            return self.loaded_hash
        whole = {"mesh": self.manifest.to_json()["mesh"], "program": self._texts()["program.json"]}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    @cached_property
    def kept(self) -> dict[str, object]:
        """What is derived from the program once and shared by its executors."""
        return {}

    @cached_property
    def mesh(self) -> RankMesh:
        """The mesh that the ranks stand on."""
        return RankMesh(self.manifest.mesh)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Where ranks begin: one entry, or one for each coordinate on the pipeline's axis. It must be valid."""
        return entries(self.inputs, self.outputs, self.functions, self.pipeline)

    def entry_of(self, rank: int) -> Entry:
        """Where a rank begins."""
        return self.entries[0 if self.pipeline is None else self.mesh.coordinates(rank)[self.pipeline.axis]]

    def home(self, each: Input | Output) -> tuple[str, int] | None:
        """The pipeline's axis and the coordinate on it whose ranks alone have a tensor; None where all have it."""
        if self.pipeline is None or each.stages is None or len(each.stages) != 1:
            return None
        return self.pipeline.axis, each.stages[0]

    def speakers(self, result: Output) -> dict[str, int]:
        """The coordinate on the pipeline's axis whose ranks speak for all that give a result."""
        return {self.pipeline.axis: result.stages[0]} if self.pipeline and result.stages else {}

    @cached_property
    def validated(self) -> Program:
        """This program, once its slots, ops, shards and calls are known to be sound; raises ProgramError."""
        try:
            validate(self.mesh, self.inputs, self.outputs, self.functions, len(self.locations), self.pipeline)
        except Malformed as error:
            raise ProgramError("E0306", f"the program is malformed: {error}") from None
        return self

    def at(self, sizes: Mapping[str, int]) -> Program:
        """The program for some of its named sizes, the others as they stand; itself where none is given.

        Raises as `bind` does.
        """
        known = {each.name: each.example for each in self.symbolic.names} if self.symbolic is not None else {}
        return self.bind({**known, **sizes}) if sizes else self

    def bind(self, sizes: Mapping[str, int]) -> Program:
        """The program for these sizes, by name: a program without named sizes, made without a compiler.

        Raises ProgramError E0309 where it does not hold for them, and says which range or guard refuses.
        """
        symbolic = self.symbolic
        refusal = "it has no named sizes" if symbolic is None else symbolic.refusal(sizes)
        if symbolic is None or refusal:
            given = ", ".join(f"{name} = {size}" for name, size in sizes.items())
            raise ProgramError("E0309", f"the program cannot run with {given}: {refusal}", help="compile it for these")
        try:
            made = replace(
                self,
                inputs=bound_inputs(self.inputs, symbolic.program, sizes),
                outputs=bound_outputs(self.outputs, symbolic.program, sizes),
                functions=bound_functions(self.functions, symbolic.program, sizes),
                reference=bound(self.reference, symbolic.reference, sizes, "reference.json"),
                symbolic=None,
                loaded_hash="",
            )
        except Malformed as error:
            raise ProgramError("E0306", f"the program is malformed: {error}") from None
        return made.validated

    @cached_property
    def single_device(self) -> Reference | None:
        """The single-device forward, when the program has one."""
        if self.reference is None:
            return None
        try:
            return Reference.from_json(self.reference)
        except Malformed as error:
            raise ProgramError("E0306", f"the program is malformed: {error}") from None

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """Initial parameters, buffers and constants by name; empty when the program has none."""
        if self.initial is not None:
            return self.initial
        return read_weights(self.folder) if self.folder else {}

    def of_kind(self, kind: str) -> tuple[Input, ...]:
        """The inputs of one kind, in the program's order."""
        return tuple(each for each in self.inputs if each.kind == kind)

    def results_of_kind(self, kind: str) -> tuple[Output, ...]:
        """The outputs of one kind, in the program's order."""
        return tuple(each for each in self.outputs if each.kind == kind)

    def to_json(self) -> dict[str, Json]:
        """What `program.json` holds."""
        turns: dict[str, Json] = {} if self.pipeline is None else {"pipeline": self.pipeline.to_json()}
        return {
            "inputs": [each.to_json() for each in self.inputs],
            "outputs": [each.to_json() for each in self.outputs],
            "functions": {name: each.to_json() for name, each in self.functions.items()},
            "locations": [[each.file, each.line, each.module] for each in self.locations],
            **turns,
        }

    def _texts(self) -> dict[str, str]:
        texts = {
            "program.json": json.dumps(self.to_json(), allow_nan=False, separators=(",", ":")),
            "ir.mlir": self.ir,
            "remarks.json": json.dumps(self.remarks, allow_nan=False),
            "reference.json": json.dumps(self.reference, allow_nan=False, separators=(",", ":")),
        }
        if self.symbolic is not None:
            texts["sizes.json"] = json.dumps(self.symbolic.to_json(), allow_nan=False, separators=(",", ":"))
        return texts


def _from_json(manifest: Manifest, files: Mapping[str, object]) -> Program:
    fields = Fields(files["program.json"], "program.json")
    return Program(
        manifest=manifest,
        inputs=fields.each("inputs", Input.from_json),
        outputs=fields.each("outputs", Output.from_json),
        functions={
            name: Function.from_json(each, f"program.json.functions.{name}")
            for name, each in fields.mapping("functions").items()
        },
        locations=fields.each("locations", Location.from_json),
        ir=str(files["ir.mlir"]),
        remarks=files["remarks.json"],  # type: ignore[arg-type]
        reference=files["reference.json"],  # type: ignore[arg-type]
        symbolic=Symbolic.from_json(files["sizes.json"]) if "sizes.json" in files else None,
        pipeline=fields.optional("pipeline", Pipeline.from_json),
    )


def _axis(value: object, path: str) -> tuple[str, int]:
    match value:
        case [str(name), int(size)] if size > 0:
            return name, size
    raise Malformed(f"{path}: expected [axis, size], found {value!r:.60}")
