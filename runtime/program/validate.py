"""Is a program sound? Slots are set before they are read, ops are known, calls fit, shards fit the mesh.

What this accepts, the executor can run without further checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from ..errors import ProgramError
from .arguments import DTYPES, Slot
from .entries import MAIN, MICROBATCH, TURN, Entry, at_stage, entries, is_timed, timed_functions, turns_of
from .json_fields import Malformed
from .mesh import RankMesh
from .ops import COLLECTIVES, MESSAGES, OWN_OPS, RANK_OPS, torch_op
from .rank_ops import axes_of_dim
from .records import Function, Input, Instruction, Output, Pipeline, Shard

ENTRY = MAIN
INPUT_KINDS = frozenset({"parameter", "buffer", "constant", "input", "random", "tangent"})
OUTPUT_KINDS = frozenset({"output", "gradient", "buffer"})
_REDUCES = frozenset({"sum", "max", "min"})


def validate(
    mesh: RankMesh,
    inputs: Sequence[Input],
    outputs: Sequence[Output],
    functions: Mapping[str, Function],
    locations: int,
    pipeline: Pipeline | None = None,
) -> None:
    """Raise Malformed (or ProgramError for an unknown op) for the first thing that is wrong."""
    _need(len({name for name, _ in mesh.axes}) == len(mesh.axes), "manifest.json.mesh: an axis stands there twice")
    names = (MAIN,) if pipeline is None else pipeline.entries
    for name in names:
        _need(name in functions, f'program.json.functions: there is no "{name}"')
    if pipeline is not None:
        _turns(pipeline, mesh)
    for at, each in enumerate(inputs):
        _tensor(each, INPUT_KINDS, mesh, f"program.json.inputs[{at}]")
        _stages(each, pipeline, f"program.json.inputs[{at}].stages")
    for at, result in enumerate(outputs):
        _tensor(result, OUTPUT_KINDS, mesh, f"program.json.outputs[{at}]")
        _addends(result, mesh, f"program.json.outputs[{at}].addends")
        _stages(result, pipeline, f"program.json.outputs[{at}].stages")
    _Functions(functions, names, mesh, locations, pipeline).check()
    _no_recursion(functions)
    named = {(each.kind, each.name) for each in inputs}
    _need(len(named) == len(inputs), "program.json.inputs: two of one kind have one name")
    if pipeline is None:
        _interface(functions[MAIN], inputs, outputs)
        return
    for stage, name in enumerate(names):
        _fits(functions[name], name, len(at_stage(inputs, stage)), len(at_stage(outputs, stage)))
    for entry in entries(inputs, outputs, functions, pipeline):
        _tangents(entry, f"program.json.functions.{entry.name}")


def _need(holds: bool, message: str) -> None:
    if not holds:
        raise Malformed(message)


def _tensor(tensor: Input | Output, kinds: frozenset[str], mesh: RankMesh, path: str) -> None:
    _need(tensor.kind in kinds, f"{path}.kind: '{tensor.kind}' is not one of {', '.join(sorted(kinds))}")
    _need(tensor.dtype in DTYPES, f"{path}.dtype: '{tensor.dtype}' is not a dtype")
    _need(all(n >= 0 for n in tensor.shape), f"{path}.shape: {list(tensor.shape)} has a negative extent")
    axes = list(chain.from_iterable(shard.axes for shard in tensor.shards))
    _need(len(set(axes)) == len(axes), f"{path}.shards: an axis shards '{tensor.name}' twice")
    dims = [shard.dim for shard in tensor.shards]
    _need(len(set(dims)) == len(dims), f"{path}.shards: a dim is sharded twice")
    if tensor.kind == "random":
        _need((tensor.shape, tensor.dtype) == ((2,), "int64"), f"{path}: a random state is two numbers of int64")
        _need(not tensor.shards, f"{path}.shards: a random state is whole on every rank")
    for at, shard in enumerate(tensor.shards):
        _shard(shard, tensor.shape, mesh, f"{path}.shards[{at}]")


def _addends(result: Output, mesh: RankMesh, path: str) -> None:
    _need(not result.addends or result.kind == "gradient", f"{path}: only gradients may be left as addends")
    _axes(list(result.addends), mesh, path)
    cutting = set(chain.from_iterable(shard.axes for shard in result.shards))
    _need(not cutting & set(result.addends), f"{path}: an axis shards '{result.name}' too")


def _shard(shard: Shard, shape: tuple[int, ...], mesh: RankMesh, path: str) -> None:
    _axes(list(shard.axes), mesh, f"{path}.axes")
    _need(0 <= shard.dim < len(shape), f"{path}.dim: {shard.dim} is not a dim of {list(shape)}")
    _need(shard.extent == shape[shard.dim], f"{path}.extent: {shard.extent}, but the shape is {list(shape)}")
    chunk = -(-shard.extent // mesh.size(shard.axes))
    _need(shard.chunk == chunk, f"{path}.chunk: {shard.chunk}, expected {chunk}")


def _axes(axes: object, mesh: RankMesh, path: str) -> None:
    listed = list(axes) if isinstance(axes, list | tuple) else [None]
    known = all(isinstance(axis, str) and axis in mesh.sizes for axis in listed)
    _need(known, f"{path}: {axes!r} are not axes of the mesh ({', '.join(mesh.sizes)})")
    _need(len(set(listed)) == len(listed), f"{path}: {axes!r} names an axis twice")


def _turns(pipeline: Pipeline, mesh: RankMesh) -> None:
    path = "program.json.pipeline"
    _need(pipeline.axis in mesh.sizes, f"{path}.axis: '{pipeline.axis}' is no axis of the mesh")
    _need(MICROBATCH not in mesh.sizes, f"manifest.json.mesh: '{MICROBATCH}' is the axis of time")
    _need(pipeline.microbatches > 0, f"{path}.microbatches: {pipeline.microbatches}")
    size = mesh.sizes[pipeline.axis]
    _need(len(set(pipeline.entries)) == size, f"{path}.entries: expected {size} functions, one for each coordinate")
    _need(len(pipeline.entries) == size, f"{path}.entries: a function stands there twice")


def _stages(record: Input | Output, pipeline: Pipeline | None, path: str) -> None:
    if record.stages is None:
        return
    if pipeline is None:
        raise Malformed(f"{path}: the program has no pipeline")
    known = all(0 <= stage < len(pipeline.entries) for stage in record.stages)
    _need(known, f"{path}: {list(record.stages)} are not coordinates on '{pipeline.axis}'")
    _need(len(set(record.stages)) == len(record.stages), f"{path}: a coordinate stands there twice")
    _need(bool(record.stages) or isinstance(record, Input), f"{path}: nobody gives '{record.name}'")
    _need(record.stages == tuple(sorted(record.stages)), f"{path}: {list(record.stages)} are not in order")


def _fits(entry: Function, name: str, inputs: int, outputs: int) -> None:
    path = f"program.json.functions.{name}"
    _need(len(entry.arguments) == inputs, f"{path}.arguments: it takes {len(entry.arguments)} of {inputs} inputs")
    _need(len(entry.results) == outputs, f"{path}.results: it gives {len(entry.results)} of {outputs} outputs")


def _tangents(entry: Entry, path: str) -> None:
    tangents = [each for each in entry.inputs if each.kind == "tangent"]
    _need(len(tangents) < 2, f"{path}.arguments: a pipeline has one tangent")
    _need(all(each.shape == () for each in tangents), f"{path}.arguments: a pipeline's tangent is one number")


class _Functions:
    """Checks what stands in functions, one by one."""

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
        self._turns = pipeline
        self._space_and_time = mesh
        if pipeline is not None:
            self._space_and_time = RankMesh((*mesh.axes, (MICROBATCH, pipeline.microbatches)))
        self._timed = timed_functions(functions)
        self._several = turns_of(functions)

    def check(self) -> None:
        """Raise for the first thing that is wrong."""
        for name in self._entries:
            path = f"program.json.functions.{name}"
            _need(name not in self._timed, f"{path}: it asks for the microbatch outside of a call that says one")
        for name, function in self._functions.items():
            self._function(name, function, f"program.json.functions.{name}")

    def _function(self, name: str, function: Function, path: str) -> None:
        _need(function.slots >= 0, f"{path}.slots: {function.slots}")
        at = function.backward_at
        _need(at is None or (name == MAIN and 0 <= at <= len(function.code)), f"{path}.backward_at: {at}")
        _need(len(set(function.arguments)) == len(function.arguments), f"{path}.arguments: a slot stands there twice")
        _need(all(0 <= slot < function.slots for slot in function.arguments), f"{path}.arguments: no such slot")
        live = set(function.arguments)
        for index, each in enumerate(function.code):
            here = f"{path}.code[{index}]"
            for slot in each.reads():
                _need(slot in live, f"{here} ({each.op}): slot {slot} is read, but not set there")
            _need(all(0 <= slot < function.slots for slot in each.writes()), f"{here}.out: no such slot")
            _need(len(set(each.writes())) == len(each.writes()), f"{here}.out: a slot stands there twice")
            live.update(each.writes())
            _need(live.issuperset(each.free), f"{here}.free: a slot is freed that is not set")
            live.difference_update(each.free)
            _need(each.loc is None or 0 <= each.loc < self._locations, f"{here}.loc: there is no location {each.loc}")
            self._turn(each, self._several.get(name), here)
            self._op(each, here)
        whole = name != MAIN or self._turns is not None
        _need(not whole or live.issuperset(function.results), f"{path}.results: a slot is not set at the end")

    def _op(self, each: Instruction, path: str) -> None:
        _need(all(key.isidentifier() for key in each.kwargs), f"{path}.kwargs: not all names are identifiers")
        if each.op == "call":
            self._call(each, path)
        elif each.op in MESSAGES:
            self._message(each, path)
        elif each.op in OWN_OPS:
            _own(each, self._space_and_time if is_timed(each) else self._mesh, path)
        else:
            op = torch_op(each.op)
            if op.is_mutable:
                raise ProgramError("E0305", f"{path}: the program calls '{each.op}', which writes to its argument")
            _need(op.gives_list or len(each.out) <= 1, f"{path}.out: {each.op} gives one value")

    def _call(self, each: Instruction, path: str) -> None:
        match each.args:
            case (str(callee), (list() | tuple()) as refs) if callee in self._functions and callee not in self._entries:
                called = self._functions[callee]
                takes, gives = len(called.arguments), len(called.results)
                _need(all(isinstance(ref, Slot) for ref in refs), f"{path}.args: a call takes slots only")
                _need(len(refs) == takes, f"{path}.args: '{callee}' takes {takes} arguments, {len(refs)} are given")
                _need(
                    len(each.out) == gives, f"{path}.out: '{callee}' gives {gives} results, {len(each.out)} are taken"
                )
            case _:
                raise Malformed(f"{path}.args: expected [function, [slots]], found {each.args!r:.60}")
        self._microbatches(each, str(each.args[0]), path)

    def _microbatches(self, each: Instruction, callee: str, path: str) -> None:
        """Of a call: what it says of microbatches."""
        of = 0 if self._turns is None else self._turns.microbatches
        at = each.kwargs.get(MICROBATCH)
        said = at if isinstance(at, list | tuple) else [at] if MICROBATCH in each.kwargs else []
        sound = each.kwargs.keys() <= {MICROBATCH, TURN} and all(type(one) is int and 0 <= one < of for one in said)
        _need(sound, f"{path}.kwargs: {dict(each.kwargs)!r:.60} is no microbatch of {of}")
        several = self._several.get(callee)
        fits = several is None or (isinstance(at, list | tuple) and len(at) == several)
        _need(fits, f"{path}.kwargs: '{callee}' is called for {several} microbatches elsewhere, not for {at!r:.60}")

    def _turn(self, each: Instruction, several: int | None, path: str) -> None:
        """Whether an instruction says whose turn it is where, and only where, its function is called for several."""
        turn = each.kwargs.get(TURN)
        asks = is_timed(each) or (each.op == "call" and each.args[0] in self._timed and MICROBATCH not in each.kwargs)
        if turn is not None:
            _need(type(turn) is int and 0 <= turn < (several or 0), f"{path}.kwargs.turn: {turn!r} of {several or 0}")
        _need(turn is not None or not asks or several is None, f"{path}.kwargs: it does not say whose turn it is")

    def _message(self, each: Instruction, path: str) -> None:
        expected = MESSAGES[each.op]
        _need(each.kwargs.keys() == expected, f"{path}.kwargs: {each.op} takes {', '.join(sorted(expected))}")
        axis, peer = each.kwargs["axis"], each.kwargs["peer"]
        _axes([axis], self._mesh, f"{path}.kwargs.axis")
        there = type(peer) is int and 0 <= peer < self._mesh.size([str(axis)])
        _need(there, f"{path}.kwargs.peer: {peer!r} is no coordinate on '{axis}'")
        if each.op == "comm.send":
            _need(len(each.args) == 1 and isinstance(each.args[0], Slot), f"{path}.args: {each.op} takes 1 slot(s)")
            _need(not each.writes(), f"{path}.out: {each.op} gives no value")
            return
        size = each.kwargs["size"]
        sound = isinstance(size, list | tuple) and all(type(extent) is int and extent >= 0 for extent in size)
        _need(sound, f"{path}.kwargs.size: {size!r:.60} is no shape")
        _need(each.kwargs["dtype"] in DTYPES.values(), f"{path}.kwargs.dtype: {each.kwargs['dtype']!r} is no dtype")
        _need(not each.args, f"{path}.args: {each.op} takes 0 slot(s)")
        _need(len(each.out) == 1, f"{path}.out: {each.op} gives one value")


def _own(each: Instruction, mesh: RankMesh, path: str) -> None:
    expected = {**COLLECTIVES, **RANK_OPS}.get(each.op, frozenset())
    given = each.kwargs.keys() - ({TURN} if is_timed(each) else set())
    _need(given == expected, f"{path}.kwargs: {each.op} takes {', '.join(sorted(expected)) or 'none'}")
    arguments = {"rank.offset": 0, "rank.random": 2}.get(each.op, 1)
    slots_only = all(isinstance(value, Slot) for value in each.args)
    _need(len(each.args) == arguments and slots_only, f"{path}.args: {each.op} takes {arguments} slot(s)")
    _need(len(each.out) == 1, f"{path}.out: {each.op} gives one value")
    if each.op == "rank.random":
        _draw(each, mesh, f"{path}.kwargs")
        return
    for key, value in each.kwargs.items():
        if key == "axes":
            _axes(value, mesh, f"{path}.kwargs.axes")
        elif key == "reduce":
            _need(value in _REDUCES, f"{path}.kwargs.reduce: {value!r} is not one of {', '.join(sorted(_REDUCES))}")
        elif key not in ("fill", TURN):
            _need(isinstance(value, int) and value >= 0, f"{path}.kwargs.{key}: {value!r} is not a size or a dim")


def _draw(each: Instruction, mesh: RankMesh, path: str) -> None:
    match each.kwargs:
        case {"size": [*size], "axes": [*axes], "chunks": [*chunks], "below": None | int()}:
            pass
        case _:
            raise Malformed(f"{path}: expected lists of sizes, axes and chunks, found {dict(each.kwargs)!r:.90}")
    _need(len(size) == len(axes) == len(chunks), f"{path}: size, axes and chunks are not of one length")
    for extent, names, chunk in zip(size, axes, chunks, strict=True):
        if not (isinstance(names, str) and isinstance(extent, int) and extent >= 0):
            raise Malformed(f"{path}: {extent!r} over {names!r} is not a size over axes")
        cutting = axes_of_dim(names)
        _axes(list(cutting), mesh, f"{path}.axes")
        _need(chunk == -(-extent // mesh.size(cutting)), f"{path}.chunks: {chunk!r} of {extent} over {names!r}")


def _no_recursion(functions: Mapping[str, Function]) -> None:
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        _need(name not in above, f"program.json.functions: '{name}' calls itself")
        if name not in done:
            for callee in sorted({str(each.args[0]) for each in functions[name].code if each.op == "call"}):
                visit(callee, (*above, name))
            done.add(name)

    for name in functions:
        visit(name, ())


def _interface(main: Function, inputs: Sequence[Input], outputs: Sequence[Output]) -> None:
    slots = [each.slot for each in inputs]
    _need(len(set(slots)) == len(slots), "program.json.inputs: two inputs share a slot")
    _need(set(slots) == set(main.arguments), "program.json.inputs: their slots are not the arguments of main")
    tangents = any(each.kind == "tangent" for each in inputs)
    _need(not tangents or main.backward_at is not None, "program.json: it takes tangents but has no backward")
    split = len(main.code) if main.backward_at is None else main.backward_at
    early = _live_after(main, {each.slot for each in inputs if each.kind != "tangent"}, split)
    late = _live_after(main, set(main.arguments), len(main.code))
    for at, each in enumerate(outputs):
        live = late if each.kind == "gradient" else early
        _need(each.slot in live, f"program.json.outputs[{at}]: slot {each.slot} of '{each.name}' is not set then")


def _live_after(function: Function, live: set[int], end: int) -> set[int]:
    for each in function.code[:end]:
        live.update(each.writes())
        live.difference_update(each.free)
    return live
