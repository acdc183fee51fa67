"""A program: what every rank runs, as data. `Program.load` reads a folder of JSON and safetensors, and validates it.

- manifest.json   format, versions, target, mode, dtype, mesh, kinds of functions, the SHA-256 of every other file, and
                  the program's hash
- program.json    inputs, outputs, functions (instruction lists), source locations
- ir.mlir         the final IR, for people; remarks.json: the remarks of the passes
- reference.json  the single-device forward; weights.safetensors: initial values by name (optional)
- sizes.json      the numbers of program.json and reference.json that depend on named sizes (optional)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import is_
from pathlib import Path

from torch import Tensor

from ..errors import ProgramError
from ..reading.json_fields import Fields, Malformed
from .arguments import Json
from .entries import Entry, entries
from .folder import WeightsFile, fill_folder, read_files, read_weights, weights_hash, write_folder
from .mesh import RankMesh
from .named_sizes import Symbolic, bound, bound_functions, bound_inputs, bound_outputs, bound_types
from .records import Function, Input, Location, Output, Pipeline, SlotType
from .reference_records import Reference
from .validate import validate
from .validate_calls import require
from .validate_reference import validate_reference
from .validate_types import validate_types
from .versions import FORMAT

NOT_CHECKED: Mapping[str, Json] = {"result": "not checked"}
"""What the manifest says of a program that nobody compared with eager PyTorch."""


@dataclass(frozen=True)
class Manifest:
    """What a program is and what it was compiled from."""

    mode: str
    """ "train" or "infer"."""
    dtype: str
    mesh: tuple[tuple[str, int], ...]
    target: str = "cpu"
    stretto: str = ""
    torch: str = ""
    arguments: Mapping[str, Json] = field(default_factory=dict)
    source: Mapping[str, Json] = field(default_factory=dict)
    checked: Mapping[str, Json] = field(default_factory=lambda: dict(NOT_CHECKED))
    """The result of comparing the program with eager PyTorch when it was compiled, and on what; a claim, no proof."""
    format: int = FORMAT

    def to_json(self) -> dict[str, Json]:
        return {
            "format": self.format, "stretto": self.stretto, "torch": self.torch, "target": self.target,
            "mode": self.mode, "dtype": self.dtype, "arguments": dict(self.arguments), "source": dict(self.source),
            "mesh": [[name, size] for name, size in self.mesh], "checked": dict(self.checked),
        }  # fmt: skip

    @staticmethod
    def from_json(value: object) -> Manifest:
        fields = Fields(value, "manifest.json")
        return Manifest(
            mode=fields.string("mode"), dtype=fields.string("dtype"), mesh=fields.list_of("mesh", _axis),
            target=fields.string("target"), stretto=fields.string("stretto"), torch=fields.string("torch"),
            arguments=fields.mapping("arguments"), source=fields.mapping("source"),  # type: ignore[arg-type]
            checked=fields.mapping_or("checked", NOT_CHECKED), format=fields.integer("format"),  # type: ignore[arg-type]
        )  # fmt: skip


@dataclass(frozen=True)
class Program:
    """A program, loaded from a folder or just compiled."""

    manifest: Manifest
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    functions: Mapping[str, Function]
    locations: tuple[Location, ...] = ()
    types: tuple[SlotType, ...] = ()
    """The distinct types of slots, which functions name by index."""
    ir: str = ""
    remarks: Json = ()
    reference: Json = None
    """The JSON of `reference.json`; `single_device` is its decoded form."""
    initial: Mapping[str, Tensor] | None = None
    """Initial values by name, for a program that was not loaded from a folder. Read them through `weights`."""
    symbolic: Symbolic | None = None
    """Its named sizes, where it has any; `bind` returns the program for other sizes."""
    pipeline: Pipeline | None = None
    """The stages of a pipelined program, and the function in which each begins."""
    folder: Path | None = None
    loaded_hash: str = ""
    weights_hash: str = ""
    """The SHA-256 of the weights file in `folder`; empty where there is none."""
    shared_weights: WeightsFile | None = None
    """The initial values that it shares with other entries of a folder."""
    _valid: list[tuple[object, ...]] = field(default_factory=list, repr=False, compare=False)
    """What `validated` has looked at, here and in the programs that this one is a `replace` of."""

    @staticmethod
    def load(folder: str | Path, *, hashed: str | None = None, shared: WeightsFile | None = None) -> Program:
        """Read a program folder. Raises ProgramError for one that is truncated, altered or of another format.

        For a folder of several entries `named_entries.ProgramSet.load` calls this: `hashed` is the SHA-256 of the
        manifest of one, `shared` has the initial values of all.
        """
        folder = Path(folder)
        files, manifest, digest = read_files(folder, hashed)
        try:
            program = program_of_files(Manifest.from_json(manifest), files)
            stated = Fields(manifest, "manifest.json").strings_or("kinds", ())
            require(stated == program.kinds, f"manifest.json.kinds: {list(stated)}, but functions say {program.kinds}")
        except Malformed as error:
            raise ProgramError("E0306", f"the program in '{folder}' is malformed: {error}") from None
        program = replace(
            program, folder=folder, loaded_hash=digest, weights_hash=weights_hash(manifest), shared_weights=shared
        )
        program.single_device  # noqa: B018  # reads and validates it: a folder is refused as a whole
        return program.validated

    def save(self, folder: str | Path) -> None:
        """Write the folder atomically. Replaces an older program there; raises ProgramError E0307 for anything else."""
        write_folder(Path(folder), lambda fresh: self.write_files(fresh, self.weights))

    def write_files(self, fresh: Path, weights: Mapping[str, Tensor]) -> None:
        """Write the files of this program into an empty folder, with these initial values."""
        manifest = {**self.manifest.to_json(), **({"kinds": list(self.kinds)} if self.kinds else {})}
        fill_folder(fresh, manifest, self.texts(), weights)

    @cached_property
    def hash(self) -> str:
        """What ranks compare: the manifest's hash if loaded, else SHA-256 over mesh and `program.json`."""
        if self.loaded_hash:
            return self.loaded_hash
        hashed = {"mesh": self.manifest.to_json()["mesh"], "program": self.texts()["program.json"]}
        return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()

    @cached_property
    def derived(self) -> dict[str, object]:
        """A cache of values derived from the program, shared by its executors."""
        return {}

    @cached_property
    def mesh(self) -> RankMesh:
        """The mesh of the ranks."""
        return RankMesh(self.manifest.mesh)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The entry of all ranks, or in a pipeline one for each stage. The program must be valid."""
        return entries(self.inputs, self.outputs, self.functions, self.pipeline)

    def entry_of(self, rank: int) -> Entry:
        """The entry in which a rank begins."""
        return self.entries[0 if self.pipeline is None else self.mesh.coordinates(rank)[self.pipeline.axis]]

    def owning_stage(self, record: Input | Output) -> tuple[str, int] | None:
        """(pipeline axis, coordinate) of the stage that alone has a tensor; None where several stages have it."""
        if self.pipeline is None or record.stages is None or len(record.stages) != 1:
            return None
        return self.pipeline.axis, record.stages[0]

    def primary_coordinates(self, output: Output) -> dict[str, int]:
        """The stage whose ranks have the primary replica of an output, by pipeline axis; see `RankMesh.is_primary`."""
        return {self.pipeline.axis: output.stages[0]} if self.pipeline and output.stages else {}

    @cached_property
    def validated(self) -> Program:
        """This program, after validation (`validate.py`) of all that ranks run. Raises ProgramError if it is not valid.

        What a program shares with one that was valid is not looked at again, but for what its functions say of slots.
        """
        parts = tuple(self._validated_parts())
        try:
            if not any(len(parts) == len(known) and all(map(is_, parts, known)) for known in self._valid):
                validate(self.mesh, self.inputs, self.outputs, self.functions, len(self.locations), self.pipeline)
                self._valid.append(parts)
            validate_types(self.types, self.functions)
        except Malformed as error:
            raise ProgramError("E0306", f"the program is malformed: {error}") from None
        return self

    def _validated_parts(self) -> Iterator[object]:
        """The objects that `validate` looks at. They are compared by identity: for Python, True equals 1."""
        yield from (self.manifest.mesh, self.inputs, self.outputs, self.locations, self.pipeline)
        for name, each in self.functions.items():
            yield from (name, each.slots, each.arguments, each.results, each.code, each.backward_at, each.kind)

    def on(self, target: str | None) -> Program:
        """The program for another target than it was compiled for; itself without one.

        Its functions with a kind then run by that target's implementations, or by their bodies. `target` is "cpu" or
        "cuda": whoever takes the word from a user checks it.
        """
        if target is None or target == self.manifest.target:
            return self
        return replace(self, manifest=replace(self.manifest, target=target))

    def at(self, sizes: Mapping[str, int]) -> Program:
        """The program for these values of some named sizes, the others as compiled; itself where none is given.

        Raises as `bind` does.
        """
        defaults = {size.name: size.example for size in self.symbolic.names} if self.symbolic is not None else {}
        return self.bind({**defaults, **sizes}) if sizes else self

    def bind(self, sizes: Mapping[str, int]) -> Program:
        """The program for these values of all named sizes: a program without named sizes, made without a compiler.

        Raises ProgramError E0309 where it is not valid for them; the message names the range or guard.
        """
        symbolic = self.symbolic
        refusal = "it has no named sizes" if symbolic is None else symbolic.refusal(sizes)
        if symbolic is None or refusal:
            text = ", ".join(f"{name} = {size}" for name, size in sizes.items())
            raise ProgramError(
                "E0309", f"the program cannot run with {text}: {refusal}", help="compile the model for these sizes"
            )
        try:
            bound_program = replace(
                self,
                inputs=bound_inputs(self.inputs, symbolic.program, sizes),
                outputs=bound_outputs(self.outputs, symbolic.program, sizes),
                functions=bound_functions(self.functions, symbolic.program, sizes),
                types=bound_types(self.types, symbolic.program, sizes),
                reference=bound(self.reference, symbolic.reference, sizes, "reference.json"),
                symbolic=None,
                loaded_hash="",
            )
        except Malformed as error:
            raise ProgramError("E0306", f"the program is malformed: {error}") from None
        return bound_program.validated

    @cached_property
    def single_device(self) -> Reference | None:
        """The single-device forward, validated, where the program has one. Raises ProgramError if it is not valid."""
        if self.reference is None:
            return None
        try:
            reference = Reference.from_json(self.reference)
            validate_reference(reference)
            return reference
        except Malformed as error:
            raise ProgramError("E0306", f"the program is malformed: {error}") from None

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """Initial parameters, buffers and constants by name; empty where the program has none.

        Raises ProgramError E0303 where the file is no longer the one that the program was loaded with.
        """
        if self.initial is not None:
            return self.initial
        own = read_weights(self.folder, self.weights_hash) if self.folder else {}
        return own if self.shared_weights is None else {**self.shared_weights.tensors, **own}

    @property
    def states_types(self) -> bool:
        """Whether its functions say the types of their slots."""
        return all(function.types for function in self.functions.values())

    def type_of(self, function: str, slot: int) -> SlotType | None:
        """What a function says of a slot; None where it holds no tensor. The program must state types."""
        index = self.functions[function].types[slot]
        return None if index is None else self.types[index]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that its functions say, sorted."""
        return tuple(sorted({function.kind.name for function in self.functions.values() if function.kind is not None}))

    def of_kind(self, kind: str) -> tuple[Input, ...]:
        """The inputs of one kind, in the program's order."""
        return tuple(argument for argument in self.inputs if argument.kind == kind)

    def results_of_kind(self, kind: str) -> tuple[Output, ...]:
        """The outputs of one kind, in the program's order."""
        return tuple(output for output in self.outputs if output.kind == kind)

    def to_json(self) -> dict[str, Json]:
        """What `program.json` holds."""
        pipeline: dict[str, Json] = {} if self.pipeline is None else {"pipeline": self.pipeline.to_json()}
        return {
            "inputs": [argument.to_json() for argument in self.inputs],
            "outputs": [output.to_json() for output in self.outputs],
            "functions": {name: function.to_json() for name, function in self.functions.items()},
            "locations": [[location.file, location.line, location.module] for location in self.locations],
            **({"types": [each.to_json() for each in self.types]} if self.types else {}),
            **pipeline,
        }

    def texts(self) -> dict[str, str]:
        """The contents of the folder's files by name, without manifest and weights."""
        texts = {
            "program.json": json.dumps(self.to_json(), allow_nan=False, separators=(",", ":")),
            "ir.mlir": self.ir,
            "remarks.json": json.dumps(self.remarks, allow_nan=False),
            "reference.json": json.dumps(self.reference, allow_nan=False, separators=(",", ":")),
        }
        if self.symbolic is not None:
            texts["sizes.json"] = json.dumps(self.symbolic.to_json(), allow_nan=False, separators=(",", ":"))
        return texts


def program_of_files(manifest: Manifest, files: Mapping[str, object]) -> Program:
    """The program of decoded files, not validated. Raises Malformed."""
    fields = Fields(files["program.json"], "program.json")
    return Program(
        manifest=manifest,
        inputs=fields.list_of("inputs", Input.from_json),
        outputs=fields.list_of("outputs", Output.from_json),
        functions={
            name: Function.from_json(function, f"program.json.functions.{name}")
            for name, function in fields.mapping("functions").items()
        },
        locations=fields.list_of("locations", Location.from_json),
        types=fields.list_of_or("types", SlotType.from_json, ()),
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
