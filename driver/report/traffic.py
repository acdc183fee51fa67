"""What crosses the links in one step of a program, without running it: each collective and send, how often, how much.

The instructions are followed with tensors that have a shape and no values. A function that is called many times is
followed once for all calls with equal shapes, so that the cost does not grow with depth. Where stages take turns, their
entries are followed in turns too: what depends on a tangent, through messages also, is of the backward.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...ir.collectives import COLLECTIVES, collective, synchronous
from ...runtime.errors import ProgramError
from ...runtime.program.arguments import DTYPES, Slot, fill_in
from ...runtime.program.entries import Entry
from ...runtime.program.ops import torch_op
from ...runtime.program.program import Program
from ...runtime.program.records import Input, Instruction, Location
from ...runtime.program.validate import ENTRY
from ...runtime.prover.shapes import META_FAILURES
from ...runtime.rank.shards import local_shape

_META = torch.device("meta")
_CARRYING = ("comm.", "rank.", "aten.add.Tensor")
"""Ops through which a part of a gradient stays one."""


SEND = "send"
"""The kind of a message to another stage."""


@dataclass(frozen=True)
class Site:
    """A collective or a send of the program: where it stands, and what it moves each time."""

    function: str
    index: int
    backward: bool
    kind: str
    """all_reduce, all_gather, reduce_scatter, all_to_all or send."""
    axes: tuple[str, ...]
    tensor_bytes: int
    """The largest tensor it takes or gives, on one rank."""
    sent_bytes: int
    """What a rank sends: all of a message, else what a ring takes: (n-1)/n of the tensor, twice for an all_reduce."""
    stage: int | None = None
    """In a pipeline: the coordinate on its axis of the ranks that run it."""
    peer: int | None = None
    """Of a send: the stage that it is for."""


Mail = defaultdict[tuple[int, int], list[bool]]
"""By stage that sends and stage that takes: of each message in order, whether it is of the backward."""
Traffic = Mapping[Site, int]
"""How often a step runs each collective or send on a rank that runs it."""


def traffic_of(program: Program) -> Traffic:
    """Every collective and send of one step (forward and, in train mode, backward), in the order of the first run."""
    follower = _Follower(program)
    return follower.main() if program.pipeline is None else follower.stages()


def place_of(program: Program, site: Site) -> Location:
    """The source place of a collective; empty when it has none."""
    loc = program.functions[site.function].code[site.index].loc
    return Location("", 0) if loc is None else program.locations[loc]


def gradients_from(program: Program, site: Site) -> tuple[str, ...]:
    """The parameters whose gradients the collective completes: what it gives, further reduced, or added to others."""
    entry = program.entries[site.stage or 0]
    if site.function != entry.name or site.kind == SEND:
        return ()
    code = program.functions[entry.name].code
    names: dict[int, list[str]] = {}
    for output in entry.gradients:
        names.setdefault(output.slot, []).append(output.name)
    found: list[str] = []
    ours = set(code[site.index].writes())
    for each in code[site.index + 1 :]:
        if each.op.startswith(_CARRYING) and ours.intersection(each.reads()):
            ours.update(each.writes())
        else:
            ours.difference_update(each.writes())
    for slot in sorted(ours):
        found += names.get(slot, [])
    return tuple(found)


@dataclass(frozen=True)
class _Followed:
    """What a function gives for arguments of some shapes, and what it sends on the way."""

    results: tuple[object, ...]
    traffic: Counter[Site]


class _Follower:
    """Follows the instructions of one program with tensors that have no values."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._mesh = program.mesh
        self._known: dict[tuple[object, ...], _Followed] = {}

    def main(self) -> Traffic:
        """The traffic of a program whose ranks take no turns."""
        main = self._program.functions[ENTRY]
        frame = _given(self._program.inputs)
        split = len(main.code) if main.backward_at is None else main.backward_at
        traffic = self._follow(ENTRY, main.code[:split], 0, frame)
        for site, count in self._follow(ENTRY, main.code[split:], split, frame).items():
            traffic[replace(site, backward=True)] += count
        return traffic

    def stages(self) -> Traffic:
        """The traffic of all stages, whose entries are followed as far as messages allow, again and again."""
        mail: Mail = defaultdict(list)
        traffic: Counter[Site] = Counter()
        runs = [self._stage(stage, entry, mail, traffic) for stage, entry in enumerate(self._program.entries)]
        while runs:
            before = sum(map(len, mail.values())), len(runs)
            runs = [run for run in runs if next(run, None) is not None]
            if (sum(map(len, mail.values())), len(runs)) == before:
                raise ProgramError("E0306", "the program is malformed: its stages wait for each other for ever")
        return traffic

    def _stage(self, stage: int, entry: Entry, mail: Mail, traffic: Counter[Site]) -> Iterator[bool]:
        """Follow one entry; stops where it waits for a message that has not been sent."""
        frame = _given(entry.inputs)
        late = {each.slot for each in entry.inputs if each.kind == "tangent"}
        messages: dict[int, tuple[int, int]] = {}
        asked: Counter[int] = Counter()
        for index, each in enumerate(self._program.functions[entry.name].code):
            reads = each.reads()
            is_late = not late.isdisjoint(reads)
            if each.op == "comm.wait" and reads[0] in messages:
                source, number = messages.pop(reads[0])
                while len(mail[source, stage]) <= number:
                    yield True
                is_late = mail[source, stage][number]
            found = self._follow(entry.name, [each], index, frame)
            traffic.update({replace(site, backward=is_late, stage=stage): count for site, count in found.items()})
            (late.update if is_late else late.difference_update)(each.writes())
            if each.op == "comm.send":
                mail[stage, _whole(each.kwargs["peer"])].append(is_late)
            elif each.op == "comm.receive_start":
                source = _whole(each.kwargs["peer"])
                messages.update(dict.fromkeys(each.writes(), (source, asked[source])))
                asked[source] += 1

    def _function(self, name: str, given: Sequence[object]) -> _Followed:
        key = (name, *(_shape(value) for value in given))
        if key not in self._known:
            function = self._program.functions[name]
            frame = dict(zip(function.arguments, given, strict=True))
            traffic = self._follow(name, function.code, 0, frame)
            self._known[key] = _Followed(tuple(frame[slot] for slot in function.results), traffic)
        return self._known[key]

    def _follow(self, name: str, code: Sequence[Instruction], start: int, frame: dict[int, object]) -> Counter[Site]:
        traffic: Counter[Site] = Counter()
        for index, each in enumerate(code, start):
            try:
                results = self._step(each, frame, traffic, (name, index))
            except META_FAILURES as error:
                raise _unfit(f"instruction {index} of '{name}', {each.op}", error) from None
            frame.update({slot: value for slot, value in zip(each.out, results, strict=False) if slot is not None})
            for slot in each.free:
                frame.pop(slot, None)
        return traffic

    def _step(
        self, each: Instruction, frame: Mapping[int, object], traffic: Counter[Site], at: tuple[str, int]
    ) -> Sequence[object]:
        """What one instruction gives; what it sends is added to `traffic`."""
        args = [fill_in(value, frame.__getitem__) for value in each.args]
        if each.op == "call":
            followed = self._function(str(args[0]), args[1])  # type: ignore[arg-type]  # validated
            traffic.update(followed.traffic)
            return followed.results
        if each.op == "comm.send":
            traffic[_send(each, args[0], *at)] += 1
            return []
        if collective(each.op) is not None:
            result, site = self._collective(each, args[0], *at)
            traffic[site] += 1
            return [result]
        return self._local(each, args, frame)

    def _local(self, each: Instruction, args: list[object], frame: Mapping[int, object]) -> Sequence[object]:
        if each.op in _OWN:
            return [_OWN[each.op](args, each.kwargs)]
        op = torch_op(each.op)
        kwargs = {key: fill_in(value, frame.__getitem__) for key, value in each.kwargs.items()}
        if op.is_factory:
            kwargs["device"] = _META
        with torch.no_grad():
            result = op.overload(*args, **kwargs)
        return list(result) if op.gives_list else [result]

    def _collective(self, each: Instruction, given: object, name: str, index: int) -> tuple[Tensor, Site]:
        assert isinstance(given, Tensor) and isinstance(each.args[0], Slot), "validated"
        axes: tuple[str, ...] = tuple(each.kwargs["axes"])  # type: ignore[arg-type]  # validated
        known = COLLECTIVES[synchronous(each.op)]
        ranks = self._mesh.size(axes)
        shape = known.result_shape(tuple(given.shape), [each.kwargs[word] for word in known.arguments], ranks)
        if shape is None:
            raise ValueError(f"{ranks} ranks do not divide the dim of {list(given.shape)} that they share")
        result = given.new_empty(shape)
        most = max(given.nbytes, result.nbytes)
        return result, Site(name, index, False, known.kind, axes, most, known.sent_bytes(most, ranks))


def _send(each: Instruction, given: object, name: str, index: int) -> Site:
    assert isinstance(given, Tensor), "validated"
    axes, peer = (str(each.kwargs["axis"]),), _whole(each.kwargs["peer"])
    return Site(name, index, False, SEND, axes, given.nbytes, given.nbytes, peer=peer)


def _given(inputs: Sequence[Input]) -> dict[int, object]:
    """What a function is given for its inputs, by slot."""
    frame: dict[int, object] = {}
    for each in inputs:
        try:
            frame[each.slot] = _meta(each)
        except META_FAILURES as error:
            raise _unfit(f"input '{each.name}'", error) from None
    return frame


def _received(kwargs: Mapping[str, object]) -> Tensor:
    size, dtype = kwargs["size"], kwargs["dtype"]
    assert isinstance(size, list | tuple) and isinstance(dtype, torch.dtype), "validated"
    return torch.empty([_whole(each) for each in size], dtype=dtype, device=_META)


def _unfit(where: str, error: Exception) -> ProgramError:
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ProgramError("E0306", f"the program is malformed: {where}: {why}", help="compile the program again")


def _shard(args: list[object], kwargs: Mapping[str, object]) -> Tensor:
    (whole,) = args
    assert isinstance(whole, Tensor), "validated"
    shape = list(whole.shape)
    shape[_whole(kwargs["dim"])] = _whole(kwargs["chunk"])
    return whole.new_empty(shape)


def _drawn(chunks: object, below: object) -> Tensor:
    assert isinstance(chunks, list | tuple), "validated"
    dtype = torch.int64 if below is None else torch.bool
    return torch.empty([_whole(each) for each in chunks], dtype=dtype, device=_META)


_OWN: dict[str, Callable[[list[object], Mapping[str, object]], object]] = {
    "comm.wait": lambda args, kwargs: args[0],
    "comm.receive_start": lambda args, kwargs: _received(kwargs),
    "rank.shard": _shard,
    "rank.offset": lambda args, kwargs: torch.empty((), dtype=torch.int64, device=_META),
    "rank.mask": lambda args, kwargs: args[0],
    "rank.random": lambda args, kwargs: _drawn(kwargs["chunks"], kwargs["below"]),
}
"""Ops of ours that are no collectives, by what they give."""


def _meta(each: Input) -> Tensor:
    return torch.empty(local_shape(each.shape, each.shards), dtype=DTYPES[each.dtype], device=_META)


def _shape(value: object) -> object:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


def _whole(value: object) -> int:
    assert isinstance(value, int), "validated"
    return value
