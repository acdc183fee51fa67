"""The communication of one step of a program, without running it: each collective and send, its count and bytes.

The instructions are traced with meta tensors. A function is traced once for all calls with equal shapes, so the cost
does not grow with depth. The entries of a pipeline's stages are traced in turns, as messages allow. What depends on a
tangent, also through messages, belongs to the backward.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...costs.communication import ring_bytes
from ...ir.collectives import COLLECTIVES, collective, synchronous
from ...runtime.errors import ProgramError
from ...runtime.program.arguments import DTYPES, fill_in
from ...runtime.program.entries import Entry
from ...runtime.program.ops import torch_op
from ...runtime.program.program import Program
from ...runtime.program.records import Input, Instruction, Location
from ...runtime.program.validate import ENTRY
from ...runtime.prover.shapes import META_FAILURES
from ...runtime.rank.shards import local_shape

_META = torch.device("meta")
_KEEPS_GRADIENT = ("comm.", "rank.", "aten.add.Tensor")
"""Ops whose result is still a gradient if an operand is one."""
_CONTEXTS = 64
"""The most shapes of arguments with which a function is called, on average; compiled programs have one or two."""
SEND = "send"
"""The kind of a message to another stage."""


@dataclass(frozen=True)
class Site:
    """A collective or a send of the program: its place, and its bytes each time."""

    function: str
    index: int
    backward: bool
    kind: str
    """all_reduce, all_gather, reduce_scatter, all_to_all or send."""
    axes: tuple[str, ...]
    tensor_bytes: int
    """The larger of operand and result, on one rank."""
    sent_bytes: int
    """The bytes that a rank sends: a whole message, or with a ring (n-1)/n of the tensor, twice for an all_reduce."""
    stage: int | None = None
    """In a pipeline: the stage that runs it."""
    peer: int | None = None
    """For a send: the stage that receives it."""


Messages = defaultdict[tuple[int, int], list[bool]]
"""For each message between two stages (sender, receiver), in order: whether it belongs to the backward."""
Traffic = Mapping[Site, int]
"""How often a rank runs each collective or send in one step."""


def traffic_of(program: Program) -> Traffic:
    """Every collective and send of one step (forward and, in train mode, backward), in execution order."""
    tracer = _Tracer(program)
    return tracer.main() if program.pipeline is None else tracer.stages()


def place_of(program: Program, site: Site) -> Location:
    """The source place of a collective or send; empty where it has none."""
    loc = program.functions[site.function].code[site.index].loc
    return Location("", 0) if loc is None else program.locations[loc]


def gradients_from(program: Program, site: Site) -> tuple[str, ...]:
    """The parameters whose gradients a collective reduces: sums and collectives alone lead from its result to them."""
    entry = program.entries[site.stage or 0]
    if site.function != entry.name or site.kind == SEND:
        return ()
    code = program.functions[entry.name].code
    names: dict[int, list[str]] = {}
    for output in entry.gradients:
        names.setdefault(output.slot, []).append(output.name)
    gradients: list[str] = []
    slots = set(code[site.index].writes())
    for instruction in code[site.index + 1 :]:
        if instruction.op.startswith(_KEEPS_GRADIENT) and slots.intersection(instruction.reads()):
            slots.update(instruction.writes())
        else:
            slots.difference_update(instruction.writes())
    for slot in sorted(slots):
        gradients += names.get(slot, [])
    return tuple(gradients)


@dataclass(frozen=True)
class _TracedCall:
    """The results of a function for arguments of some shapes, and its communication."""

    results: tuple[object, ...]
    traffic: Counter[Site]


class _Tracer:
    """Traces the instructions of one program with meta tensors."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._mesh = program.mesh
        self._known: dict[tuple[object, ...], _TracedCall] = {}

    def main(self) -> Traffic:
        """The traffic of a program without a pipeline."""
        main = self._program.functions[ENTRY]
        frame = _meta_inputs(self._program.inputs)
        split = len(main.code) if main.backward_at is None else main.backward_at
        traffic = self._trace(ENTRY, main.code[:split], 0, frame)
        for site, count in self._trace(ENTRY, main.code[split:], split, frame).items():
            traffic[replace(site, backward=True)] += count
        return traffic

    def stages(self) -> Traffic:
        """The traffic of all stages; their entries are traced in turns, each until it waits for a message."""
        sent: Messages = defaultdict(list)
        traffic: Counter[Site] = Counter()
        runs = [self._stage(stage, entry, sent, traffic) for stage, entry in enumerate(self._program.entries)]
        while runs:
            before = sum(map(len, sent.values())), len(runs)
            runs = [run for run in runs if next(run, None) is not None]
            if (sum(map(len, sent.values())), len(runs)) == before:
                raise ProgramError("E0306", "the program is malformed: its stages deadlock")
        return traffic

    def _stage(self, stage: int, entry: Entry, sent: Messages, traffic: Counter[Site]) -> Iterator[bool]:
        """Trace one entry; yields while it waits for a message that was not sent yet."""
        frame = _meta_inputs(entry.inputs)
        backward_slots = {tangent.slot for tangent in entry.inputs if tangent.kind == "tangent"}
        messages: dict[int, tuple[int, int]] = {}
        received: Counter[int] = Counter()
        for index, instruction in enumerate(self._program.functions[entry.name].code):
            reads = instruction.reads()
            is_backward = not backward_slots.isdisjoint(reads)
            if instruction.op == "comm.wait" and reads[0] in messages:
                source, number = messages.pop(reads[0])
                while len(sent[source, stage]) <= number:
                    yield True
                is_backward = sent[source, stage][number]
            sites = self._trace(entry.name, [instruction], index, frame)
            traffic.update({replace(site, backward=is_backward, stage=stage): count for site, count in sites.items()})
            (backward_slots.update if is_backward else backward_slots.difference_update)(instruction.writes())
            if instruction.op == "comm.send":
                sent[stage, _integer(instruction.kwargs["peer"])].append(is_backward)
            elif instruction.op == "comm.receive_start":
                source = _integer(instruction.kwargs["peer"])
                messages.update(dict.fromkeys(instruction.writes(), (source, received[source])))
                received[source] += 1

    def _function(self, name: str, arguments: Sequence[object]) -> _TracedCall:
        key = (name, *(_shape(value) for value in arguments))
        if key not in self._known:
            if len(self._known) > _CONTEXTS * len(self._program.functions):
                raise ProgramError("E0726", "the program's functions are called with too many different shapes")
            function = self._program.functions[name]
            frame = dict(zip(function.arguments, arguments, strict=True))
            traffic = self._trace(name, function.code, 0, frame)
            self._known[key] = _TracedCall(tuple(frame[slot] for slot in function.results), traffic)
        return self._known[key]

    def _trace(self, name: str, code: Sequence[Instruction], start: int, frame: dict[int, object]) -> Counter[Site]:
        traffic: Counter[Site] = Counter()
        for index, instruction in enumerate(code, start):
            try:
                results = self._step(instruction, frame, traffic, (name, index))
            except META_FAILURES as error:
                raise _malformed(f"instruction {index} of '{name}', {instruction.op}", error) from None
            frame.update(
                {slot: value for slot, value in zip(instruction.out, results, strict=False) if slot is not None}
            )
            for slot in instruction.free:
                frame.pop(slot, None)
        return traffic

    def _step(
        self, instruction: Instruction, frame: Mapping[int, object], traffic: Counter[Site], position: tuple[str, int]
    ) -> Sequence[object]:
        """The results of one instruction; its communication is added to `traffic`."""
        args = [fill_in(value, frame.__getitem__) for value in instruction.args]
        if instruction.op == "call":
            traced = self._function(str(args[0]), args[1])  # type: ignore[arg-type]  # validated
            traffic.update(traced.traffic)
            return traced.results
        if instruction.op == "comm.send":
            traffic[_send(instruction, args[0], *position)] += 1
            return []
        if collective(instruction.op) is not None:
            results, site = self._collective(instruction, args[0], *position)
            traffic[site] += 1
            return results
        return self._local(instruction, args, frame)

    def _local(self, instruction: Instruction, args: list[object], frame: Mapping[int, object]) -> Sequence[object]:
        if instruction.op in _LOCAL_OPS:
            return [_LOCAL_OPS[instruction.op](args, instruction.kwargs)]
        op = torch_op(instruction.op)
        kwargs = {key: fill_in(value, frame.__getitem__) for key, value in instruction.kwargs.items()}
        if op.is_factory:
            kwargs["device"] = _META
        with torch.no_grad():
            result = op.overload(*args, **kwargs)
        return list(result) if op.gives_list else [result]

    def _collective(
        self, instruction: Instruction, operand: object, name: str, index: int
    ) -> tuple[list[Tensor], Site]:
        operands: list[Tensor] = operand if isinstance(operand, list) else [operand]  # type: ignore[list-item]  # validated
        axes: tuple[str, ...] = tuple(instruction.kwargs["axes"])  # type: ignore[arg-type]  # validated
        known = COLLECTIVES[synchronous(instruction.op)]
        ranks = self._mesh.size(axes)
        constants = [instruction.kwargs[word] for word in known.arguments]
        results = []
        for each, shape in zip(
            operands, known.result_shapes([tuple(each.shape) for each in operands], constants, ranks), strict=True
        ):
            if shape is None:
                raise ValueError(f"{ranks} ranks do not divide the dim of {list(each.shape)} that they share")
            results.append(each.new_empty(shape))
        tensor_bytes = max(sum(each.nbytes for each in tensors) for tensors in (operands, results))
        sent = ring_bytes(known.kind, tensor_bytes, ranks)
        return results, Site(name, index, False, known.kind, axes, tensor_bytes, sent)


def _send(instruction: Instruction, operand: object, name: str, index: int) -> Site:
    assert isinstance(operand, Tensor), "validated"
    axes, peer = (str(instruction.kwargs["axis"]),), _integer(instruction.kwargs["peer"])
    return Site(name, index, False, SEND, axes, operand.nbytes, operand.nbytes, peer=peer)


def _meta_inputs(inputs: Sequence[Input]) -> dict[int, object]:
    """Meta tensors for a function's inputs, by slot."""
    frame: dict[int, object] = {}
    for tensor in inputs:
        try:
            frame[tensor.slot] = _meta_tensor(tensor)
        except META_FAILURES as error:
            raise _malformed(f"input '{tensor.name}'", error) from None
    return frame


def _meta_message(kwargs: Mapping[str, object]) -> Tensor:
    size, dtype = kwargs["size"], kwargs["dtype"]
    assert isinstance(size, list | tuple) and isinstance(dtype, torch.dtype), "validated"
    return torch.empty([_integer(extent) for extent in size], dtype=dtype, device=_META)


def _malformed(where: str, error: Exception) -> ProgramError:
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ProgramError("E0306", f"the program is malformed: {where}: {why}", help="compile the program again")


def _meta_shard(args: list[object], kwargs: Mapping[str, object]) -> Tensor:
    (whole,) = args
    assert isinstance(whole, Tensor), "validated"
    shape = list(whole.shape)
    shape[_integer(kwargs["dim"])] = _integer(kwargs["chunk"])
    return whole.new_empty(shape)


def _meta_random(chunks: object, below: object) -> Tensor:
    assert isinstance(chunks, list | tuple), "validated"
    dtype = torch.int64 if below is None else torch.bool
    return torch.empty([_integer(extent) for extent in chunks], dtype=dtype, device=_META)


_LOCAL_OPS: dict[str, Callable[[list[object], Mapping[str, object]], object]] = {
    "comm.wait": lambda args, kwargs: args[0],
    "comm.receive_start": lambda args, kwargs: _meta_message(kwargs),
    "rank.shard": _meta_shard,
    "rank.offset": lambda args, kwargs: torch.empty((), dtype=torch.int64, device=_META),
    "rank.mask": lambda args, kwargs: args[0],
    "rank.random": lambda args, kwargs: _meta_random(kwargs["chunks"], kwargs["below"]),
}
"""The results of Stretto's ops that are no collectives."""


def _meta_tensor(tensor: Input) -> Tensor:
    return torch.empty(local_shape(tensor.shape, tensor.shards), dtype=DTYPES[tensor.dtype], device=_META)


def _shape(value: object) -> object:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


def _integer(value: object) -> int:
    assert isinstance(value, int), "validated"
    return value
