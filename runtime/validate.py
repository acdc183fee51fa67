"""Is a program sound? Slots are set before they are read, ops are known, calls fit, shards fit the mesh.

What this accepts, the executor can run without further checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from .arguments import DTYPES, Slot
from .errors import ProgramError
from .json_fields import Malformed
from .mesh import RankMesh
from .ops import COLLECTIVES, OWN_OPS, RANK_OPS, torch_op
from .rank_ops import axes_of_dim
from .records import Function, Input, Instruction, Output, Shard

ENTRY = "main"
INPUT_KINDS = frozenset({"parameter", "buffer", "constant", "input", "random", "tangent"})
OUTPUT_KINDS = frozenset({"output", "gradient", "buffer"})
_REDUCES = frozenset({"sum", "max", "min"})


def validate(
    mesh: RankMesh,
    inputs: Sequence[Input],
    outputs: Sequence[Output],
    functions: Mapping[str, Function],
    locations: int,
) -> None:
    """Raise Malformed (or ProgramError for an unknown op) for the first thing that is wrong."""
    _need(len({name for name, _ in mesh.axes}) == len(mesh.axes), "manifest.json.mesh: an axis stands there twice")
    _need(ENTRY in functions, f'program.json.functions: there is no "{ENTRY}"')
    for at, each in enumerate(inputs):
        _tensor(each, INPUT_KINDS, mesh, f"program.json.inputs[{at}]")
    for at, result in enumerate(outputs):
        _tensor(result, OUTPUT_KINDS, mesh, f"program.json.outputs[{at}]")
        _addends(result, mesh, f"program.json.outputs[{at}].addends")
    for name, function in functions.items():
        _function(name, function, functions, mesh, locations)
    _no_recursion(functions)
    _interface(functions[ENTRY], inputs, outputs)


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


def _function(name: str, function: Function, functions: Mapping[str, Function], mesh: RankMesh, locations: int) -> None:
    path = f"program.json.functions.{name}"
    _need(function.slots >= 0, f"{path}.slots: {function.slots}")
    at = function.backward_at
    _need(at is None or (name == ENTRY and 0 <= at <= len(function.code)), f"{path}.backward_at: {at}")
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
        _need(each.loc is None or 0 <= each.loc < locations, f"{here}.loc: there is no location {each.loc}")
        _op(each, functions, mesh, here)
    _need(name == ENTRY or live.issuperset(function.results), f"{path}.results: a slot is not set at the end")


def _op(each: Instruction, functions: Mapping[str, Function], mesh: RankMesh, path: str) -> None:
    _need(all(key.isidentifier() for key in each.kwargs), f"{path}.kwargs: not all names are identifiers")
    if each.op == "call":
        _call(each, functions, path)
    elif each.op in OWN_OPS:
        _own(each, mesh, path)
    else:
        op = torch_op(each.op)
        if op.is_mutable:
            raise ProgramError("E0305", f"{path}: the program calls '{each.op}', which writes to its argument")
        _need(op.gives_list or len(each.out) <= 1, f"{path}.out: {each.op} gives one value")


def _call(each: Instruction, functions: Mapping[str, Function], path: str) -> None:
    match each.args:
        case (str(callee), (list() | tuple()) as refs) if callee in functions and callee != ENTRY and not each.kwargs:
            takes, gives = len(functions[callee].arguments), len(functions[callee].results)
            _need(all(isinstance(ref, Slot) for ref in refs), f"{path}.args: a call takes slots only")
            _need(len(refs) == takes, f"{path}.args: '{callee}' takes {takes} arguments, {len(refs)} are given")
            _need(len(each.out) == gives, f"{path}.out: '{callee}' gives {gives} results, {len(each.out)} are taken")
        case _:
            raise Malformed(f"{path}.args: expected [function, [slots]], found {each.args!r:.60}")


def _own(each: Instruction, mesh: RankMesh, path: str) -> None:
    expected = {**COLLECTIVES, **RANK_OPS}.get(each.op, frozenset())
    _need(each.kwargs.keys() == expected, f"{path}.kwargs: {each.op} takes {', '.join(sorted(expected)) or 'none'}")
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
        elif key != "fill":
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
    named = {(each.kind, each.name) for each in inputs}
    _need(len(named) == len(inputs), "program.json.inputs: two of one kind have one name")
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
