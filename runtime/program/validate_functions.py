"""Validation of functions: slots are set before they are read, ops are known, calls and microbatches match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import ProgramError
from ..reading.json_fields import Malformed
from .arguments import DTYPES, Slot
from .entries import (
    MAIN,
    MICROBATCH,
    MICROBATCH_INDEX,
    depends_on_microbatch,
    microbatch_functions,
    microbatches_per_call,
)
from .limits import LANE_NAME, MOST_LANES
from .mesh import RankMesh
from .ops import COALESCED, COLLECTIVES, COUNTS, MESSAGE_NAMES, MESSAGES, OWN_OPS, RANK_OPS, torch_op
from .rank_ops import axes_of_dim
from .records import Function, Instruction, Pipeline
from .validate_calls import check_call, check_slots, require

_REDUCES = frozenset({"sum", "max", "min"})


def require_axes(axes: object, mesh: RankMesh, path: str) -> None:
    """Raise Malformed unless `axes` is a list of distinct axes of the mesh."""
    listed = list(axes) if isinstance(axes, list | tuple) else [None]
    known = all(isinstance(axis, str) and axis in mesh.sizes for axis in listed)
    require(known, f"{path}: {axes!r} are not axes of the mesh ({', '.join(mesh.sizes)})")
    require(len(set(listed)) == len(listed), f"{path}: {axes!r} names an axis twice")


class FunctionValidator:
    """Validates the functions of a program one by one."""

    def __init__(
        self,
        functions: Mapping[str, Function],
        entries: Sequence[str],
        mesh: RankMesh,
        locations: int,
        pipeline: Pipeline | None,
    ) -> None:
        self._functions = functions
        self._entries = entries
        self._mesh = mesh
        self._locations = locations
        self._pipeline = pipeline
        self._mesh_with_microbatches = mesh
        if pipeline is not None:
            self._mesh_with_microbatches = RankMesh((*mesh.axes, (MICROBATCH, pipeline.microbatches)))
        self._microbatch_functions = microbatch_functions(functions)
        self._microbatches_per_call = microbatches_per_call(functions)
        self._lanes: set[str] = set()

    def check(self) -> None:
        """Raise for the first thing that is wrong."""
        for name in self._entries:
            path = f"program.json.functions.{name}"
            require(
                name not in self._microbatch_functions,
                f"{path}: it depends on the microbatch outside of a call that gives one",
            )
        for name, function in self._functions.items():
            self._function(name, function, f"program.json.functions.{name}")

    def _function(self, name: str, function: Function, path: str) -> None:
        require(function.slots >= 0, f"{path}.slots: expected at least 0, found {function.slots}")
        backward_at = function.backward_at
        require(
            backward_at is None or (name == MAIN and 0 <= backward_at <= len(function.code)),
            f'{path}.backward_at: {backward_at} is not an index into the code of "{MAIN}"',
        )
        require(len(set(function.arguments)) == len(function.arguments), f"{path}.arguments: a slot is listed twice")
        require(all(0 <= slot < function.slots for slot in function.arguments), f"{path}.arguments: no such slot")
        live = set(function.arguments)
        for index, instruction in enumerate(function.code):
            code_path = f"{path}.code[{index}]"
            check_slots(instruction, live, function.slots, code_path)
            location = instruction.loc
            require(location is None or 0 <= location < self._locations, f"{code_path}.loc: no location {location}")
            if instruction.lane:
                self._lane(instruction, code_path)
            self._microbatch_index(instruction, self._microbatches_per_call.get(name), code_path)
            self._op(instruction, code_path)
        has_results = name != MAIN or self._pipeline is not None
        require(not has_results or live.issuperset(function.results), f"{path}.results: a slot is not set at the end")

    def _lane(self, instruction: Instruction, path: str) -> None:
        """Check the lane that an instruction names."""
        named = LANE_NAME.fullmatch(instruction.lane) is not None and instruction.op != "call"
        require(named, f"{path}.lane: {instruction.lane!r:.40} is not a lane, or a call names one")
        self._lanes.add(instruction.lane)
        require(len(self._lanes) <= MOST_LANES, f"{path}.lane: more than {MOST_LANES} lanes")

    def _op(self, instruction: Instruction, path: str) -> None:
        require(all(key.isidentifier() for key in instruction.kwargs), f"{path}.kwargs: a name is not an identifier")
        if instruction.op == "call":
            self._call(instruction, path)
        elif instruction.op in MESSAGES:
            self._message(instruction, path)
        elif instruction.op in OWN_OPS:
            mesh = self._mesh_with_microbatches if depends_on_microbatch(instruction) else self._mesh
            _own_op(instruction, mesh, path)
            if instruction.op in ("comm.permute_start", "comm.all_to_all_rows_start"):
                self._stays_in_its_stage(instruction, path)
        else:
            op = torch_op(instruction.op, path)
            if op.only_in_references:
                raise ProgramError(
                    "E0305",
                    f"{path}: the program calls '{instruction.op}', which writes to its argument or says strides",
                )
            check_call(op, instruction, path)

    def _call(self, instruction: Instruction, path: str) -> None:
        match instruction.args:
            case (str(callee), (list() | tuple()) as refs) if callee in self._functions and callee not in self._entries:
                called = self._functions[callee]
                arguments, results = len(called.arguments), len(called.results)
                require(all(isinstance(ref, Slot) for ref in refs), f"{path}.args: a call takes slots only")
                require(len(refs) == arguments, f"{path}.args: '{callee}' takes {arguments} slots, found {len(refs)}")
                outs = len(instruction.out)
                require(outs == results, f"{path}.out: '{callee}' returns {results} values, found {outs} slots")
            case _:
                raise Malformed(f"{path}.args: expected [function, [slots]], found {instruction.args!r:.60}")
        self._microbatches(instruction, str(instruction.args[0]), path)

    def _microbatches(self, instruction: Instruction, callee: str, path: str) -> None:
        """Check the microbatches that a call gives."""
        total = 0 if self._pipeline is None else self._pipeline.microbatches
        value = instruction.kwargs.get(MICROBATCH)
        microbatches = value if isinstance(value, list | tuple) else [value] if MICROBATCH in instruction.kwargs else []
        valid = instruction.kwargs.keys() <= {MICROBATCH, MICROBATCH_INDEX} and all(
            type(microbatch) is int and 0 <= microbatch < total for microbatch in microbatches
        )
        require(valid, f"{path}.kwargs: {dict(instruction.kwargs)!r:.60} is not a microbatch of {total}")
        count = self._microbatches_per_call.get(callee)
        matches = count is None or (isinstance(value, list | tuple) and len(value) == count)
        require(
            matches, f"{path}.kwargs: other calls of '{callee}' give {count} microbatches, this one gives {value!r:.60}"
        )

    def _microbatch_index(self, instruction: Instruction, count: int | None, path: str) -> None:
        """Check that an instruction names one of the microbatches exactly where its function is called for several."""
        index = instruction.kwargs.get(MICROBATCH_INDEX)
        needs_microbatch = depends_on_microbatch(instruction) or (
            instruction.op == "call"
            and instruction.args[0] in self._microbatch_functions
            and MICROBATCH not in instruction.kwargs
        )
        path = f"{path}.kwargs.{MICROBATCH_INDEX}"
        if index is not None:
            valid = type(index) is int and 0 <= index < (count or 0)
            require(valid, f"{path}: {index!r} is not a position among {count or 0} microbatches")
        missing = index is None and needs_microbatch and count is not None
        require(not missing, f"{path}: it is missing, but the function is called for {count} microbatches")

    def _stays_in_its_stage(self, instruction: Instruction, path: str) -> None:
        axes, stages = instruction.kwargs["axes"], self._pipeline and self._pipeline.axis
        crosses = isinstance(axes, list | tuple) and stages in axes
        require(
            not crosses,
            f"{path}.kwargs.axes: {instruction.op} may not cross stages, which exchange messages on '{stages}'",
        )

    def _message(self, instruction: Instruction, path: str) -> None:
        expected = MESSAGES[instruction.op]
        names = MESSAGE_NAMES[instruction.op] & instruction.kwargs.keys()
        require(
            instruction.kwargs.keys() - names == expected,
            f"{path}.kwargs: {instruction.op} takes {', '.join(sorted(expected))}",
        )
        for key in sorted(names):
            require(isinstance(instruction.kwargs[key], str), f"{path}.kwargs.{key}: expected a string")
        axis, peer = instruction.kwargs["axis"], instruction.kwargs["peer"]
        require_axes([axis], self._mesh, f"{path}.kwargs.axis")
        known = type(peer) is int and 0 <= peer < self._mesh.size([str(axis)])
        require(known, f"{path}.kwargs.peer: {peer!r} is not a coordinate on '{axis}'")
        if instruction.op == "comm.send":
            require(
                len(instruction.args) == 1 and isinstance(instruction.args[0], Slot),
                f"{path}.args: {instruction.op} takes 1 slot(s)",
            )
            require(not instruction.writes(), f"{path}.out: {instruction.op} returns nothing")
            return
        size = instruction.kwargs["size"]
        valid = isinstance(size, list | tuple) and all(type(extent) is int and extent >= 0 for extent in size)
        require(valid, f"{path}.kwargs.size: {size!r:.60} is not a shape")
        dtype = instruction.kwargs["dtype"]
        require(dtype in DTYPES.values(), f"{path}.kwargs.dtype: {dtype!r} is not a dtype")
        require(not instruction.args, f"{path}.args: {instruction.op} takes no slots")
        require(len(instruction.out) == 1, f"{path}.out: {instruction.op} returns one value")


def _own_op(instruction: Instruction, mesh: RankMesh, path: str) -> None:
    expected = {**COLLECTIVES, **RANK_OPS}.get(instruction.op, frozenset())
    keywords = instruction.kwargs.keys() - ({MICROBATCH_INDEX} if depends_on_microbatch(instruction) else set())
    require(keywords == expected, f"{path}.kwargs: {instruction.op} takes {', '.join(sorted(expected)) or 'none'}")
    if instruction.op in COALESCED:
        _bucket(instruction, path)
    else:
        arguments = {"rank.offset": 0, "rank.random": 2}.get(instruction.op, 1)
        slots_only = all(isinstance(value, Slot) for value in instruction.args)
        is_valid = len(instruction.args) == arguments and slots_only
        require(is_valid, f"{path}.args: {instruction.op} takes {arguments} slot(s)")
        require(len(instruction.out) == 1, f"{path}.out: {instruction.op} returns one value")
    if instruction.op == "rank.random":
        _random_op(instruction, mesh, f"{path}.kwargs")
        return
    for key, value in instruction.kwargs.items():
        if key == "axes":
            require_axes(value, mesh, f"{path}.kwargs.axes")
        elif key == "reduce":
            require(value in _REDUCES, f"{path}.kwargs.reduce: {value!r} is not one of {', '.join(sorted(_REDUCES))}")
        elif key == "shift":
            require(type(value) is int, f"{path}.kwargs.shift: {value!r} is not a whole number")
        elif key in COUNTS:
            require(isinstance(value, Slot), f"{path}.kwargs.{key}: {value!r:.60} is not a slot")
        elif key not in ("fill", "dims", MICROBATCH_INDEX):
            require(isinstance(value, int) and value >= 0, f"{path}.kwargs.{key}: {value!r} is not a size or a dim")


def _bucket(instruction: Instruction, path: str) -> None:
    """Check the operands, results and dims of a collective of several tensors."""
    match instruction.args:
        case ((list() | tuple()) as refs,) if refs and all(isinstance(ref, Slot) for ref in refs):
            count = len(refs)
        case _:
            raise Malformed(f"{path}.args: {instruction.op} takes a list of slots, found {instruction.args!r:.60}")
    outs = len(instruction.out)
    require(outs == count, f"{path}.out: {instruction.op} of {count} tensors returns as many, found {outs} slots")
    if "dims" in instruction.kwargs:
        dims = instruction.kwargs["dims"]
        is_valid = isinstance(dims, list | tuple) and all(type(dim) is int and dim >= 0 for dim in dims)
        require(is_valid, f"{path}.kwargs.dims: {dims!r:.60} is not a list of dims")
        given = len(dims) if isinstance(dims, list | tuple) else 0
        require(given == count, f"{path}.kwargs.dims: expected a dim for each of {count} tensors, found {given}")


def _random_op(instruction: Instruction, mesh: RankMesh, path: str) -> None:
    match instruction.kwargs:
        case {"size": [*size], "axes": [*axes], "chunks": [*chunks], "below": None | int()}:
            pass
        case _:
            raise Malformed(f"{path}: expected lists of sizes, axes and chunks, found {dict(instruction.kwargs)!r:.90}")
    require(len(size) == len(axes) == len(chunks), f"{path}: size, axes and chunks differ in length")
    for extent, names, chunk in zip(size, axes, chunks, strict=True):
        if not (isinstance(names, str) and isinstance(extent, int) and extent >= 0):
            raise Malformed(f"{path}: expected a size and a text of axes, found {extent!r} and {names!r}")
        axes_of_chunk = axes_of_dim(names)
        require_axes(list(axes_of_chunk), mesh, f"{path}.axes")
        expected = -(-extent // mesh.size(axes_of_chunk))
        require(chunk == expected, f"{path}.chunks: expected {expected}, found {chunk!r} ({extent} over {names!r})")
