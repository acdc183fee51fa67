"""A program's entry as flat steps, each on a stream, behind the steps of other streams that it must wait for.

The lane of an instruction is its stream; messages have a stream for each direction between two ranks, so that a send
holds up nothing else but the second send after it. A step waits for the makers of what it reads, and where it writes
into a state for all that still use the old value.

Memory follows torch's caching allocator: a block belongs to the stream on which it was made and, once free, goes to the
next work of that stream at once. So a block whose last use is on another stream is kept until its own stream is behind
that use; its next step waits for it. What is sent is kept until the next send to the same rank.

With `capture`, steps between work of the host are segments that become CUDA graphs: all streams meet at their ends.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ...runtime.errors import ProgramError
from ...runtime.lanes.aliases import aliased_slots
from ...runtime.lanes.names import COMPUTE, lane_of
from ...runtime.program.arguments import slots_in
from ...runtime.program.entries import MICROBATCH, MICROBATCH_INDEX, Entry
from ...runtime.program.ops import COALESCED, COLLECTIVES
from ...runtime.program.program import Program
from ...runtime.program.records import Instruction
from .host_work import is_host_work
from .steps import Block, Clock, EntrySteps, Mark, Microbatch, Part, Step, Value
from .stream_log import Path

MOST_STEPS = 1 << 20
"""The most steps of an entry: some seconds of walking."""
_SENDS = "send to "


def steps_of(program: Program, rank: int, *, kernels: Collection[str] = (), capture: bool = False) -> EntrySteps:
    """The steps of a rank. Kernels run in place of the functions in `kernels`.

    The program must be valid, and state the types of its slots. Raises ProgramError E0726 for more than `MOST_STEPS`.
    """
    walk = _Walk(program, rank, frozenset(kernels), capture=capture)
    return walk.entry(program.entry_of(rank))


class _Walk:
    """The state of the host while it issues the instructions of a rank."""

    def __init__(self, program: Program, rank: int, kernels: frozenset[str], *, capture: bool) -> None:
        self._program = program
        self._mesh = program.mesh
        self._own = self._mesh.coordinates(rank)
        self._kernels = kernels
        self._capture = capture
        self._clocks: dict[str, dict[str, int]] = {}
        self._streams: list[str] = []
        self._steps: list[Step] = []
        self._waiting: dict[str, list[Block]] = {}
        """By stream: its blocks that are free once it is behind their uses."""
        self._blocks = 0
        self._open = False
        """Whether a segment is open: begun and not met."""

    def entry(self, entry: Entry) -> EntrySteps:
        """Walk an entry. Its inputs and results are the caller's, who keeps them."""
        function = self._program.functions[entry.name]
        self._streams = [COMPUTE, *sorted(self._streams_of(entry.name, set()) - {COMPUTE})]
        self._clocks = {stream: {} for stream in self._streams}
        slots = {slot: self._input(entry.name, slot) for slot in function.arguments}
        split = len(function.code) if function.backward_at is None else function.backward_at
        forward = Part(taken=[slots[each.slot] for each in entry.forward_inputs])
        early = {each.slot for each in entry.forward_inputs}
        tangents = [slots[each.slot] for each in entry.inputs if each.slot not in early]
        self._run(entry.name, range(split), slots, forward)
        outputs = entry.forward_outputs if entry.stage is None else (*entry.forward_outputs, *entry.gradients)
        forward.given = [_held(slots[each.slot]) for each in outputs]
        backward = Part(taken=tangents)
        if entry.stage is None and split < len(function.code):
            self._run(entry.name, range(split, len(function.code)), slots, backward)
            backward.given = [_held(slots[each.slot]) for each in entry.gradients]
        return EntrySteps(forward, backward, tuple(self._streams))

    def _run(self, name: str, indices: range, slots: dict[int, Value], part: Part) -> None:
        """The steps of a part: between marks, so that streams begin behind the caller, who goes on behind all."""
        self._steps = part.steps
        if not self._capture:
            self._begin()
        self._code(name, indices, slots, (), None)
        if self._open:
            self._meet()
        for stream, blocks in self._waiting.items():
            if blocks:
                self._mark(stream, Mark.BEGIN, [(COMPUTE, self._clocks[COMPUTE][COMPUTE])])
        self._waiting = {}

    def _streams_of(self, name: str, seen: set[str]) -> set[str]:
        """The streams of a function and of all that it calls."""
        seen.add(name)
        streams = set()
        for instruction in self._program.functions[name].code:
            if instruction.op != "call":
                streams.add(self._stream(instruction))
            elif str(instruction.args[0]) not in seen:
                streams |= self._streams_of(str(instruction.args[0]), seen)
        return streams

    def _stream(self, instruction: Instruction) -> str:
        if instruction.op in ("comm.send", "comm.receive_start"):
            peer = self._mesh.rank_at(
                {**self._own, str(instruction.kwargs["axis"]): int(str(instruction.kwargs["peer"]))}
            )
            return f"{_SENDS}{peer}" if instruction.op == "comm.send" else f"receive from {peer}"
        return lane_of(instruction)

    def _input(self, function: str, slot: int) -> Value:
        block = self._block(COMPUTE, function, slot)
        block.static, block.holders = True, 2
        block.values.append(Value((block,), COMPUTE, 0, {}))
        return block.values[0]

    def _block(self, stream: str, function: str, slot: int | None) -> Block:
        kind = None if slot is None or not self._program.states_types else self._program.type_of(function, slot)
        self._blocks += 1
        return Block(self._blocks, stream, 0 if kind is None else kind.bytes)

    def _begin(self) -> None:
        """All streams begin behind compute."""
        self._mark(COMPUTE, Mark.BEGIN, [])
        number = self._clocks[COMPUTE][COMPUTE]
        for stream in self._streams[1:]:
            self._mark(stream, Mark.BEGIN, [(COMPUTE, number)])
        self._open = True

    def _meet(self) -> None:
        """Compute is behind all streams."""
        others = ((stream, self._clocks[stream].get(stream, 0)) for stream in self._streams[1:])
        self._mark(COMPUTE, Mark.MEET, [(s, n) for s, n in others if n > self._clocks[COMPUTE].get(s, 0)])
        self._open = False

    def _mark(self, stream: str, mark: Mark, waits: list[tuple[str, int]]) -> None:
        clock = self._clocks[stream]
        for other, number in waits:
            _join(clock, self._clocks[other])
            clock[other] = max(clock.get(other, 0), number)
        clock[stream] = clock.get(stream, 0) + 1
        before = self._settled(stream)
        self._steps.append(Step(stream, clock[stream], mark=mark, waits=waits, frees=before))

    def _settled(self, stream: str) -> list[Block]:
        """The blocks that wait for their stream, where it is behind their uses by now; they wait no longer."""
        waiting = self._waiting.get(stream, [])
        settled = [block for block in waiting if not self._late_uses(block)]
        self._waiting[stream] = [block for block in waiting if block not in settled]
        return settled

    def _late_uses(self, block: Block) -> list[tuple[str, int, Clock]]:
        """The uses of a block that its own stream is not behind."""
        own = self._clocks[block.stream]
        return [(s, n, clock) for s, (n, clock) in block.uses.items() if s != block.stream and n > own.get(s, 0)]

    def _due(self, use: tuple[str, int, Clock]) -> bool:
        """Whether a block is wanted back after a use: after a send once there is another one to the same rank."""
        stream, number, _ = use
        return not stream.startswith(_SENDS) or number < self._clocks[stream][stream]

    def _code(self, name: str, indices: range, slots: dict[int, Value], path: Path, microbatch: Microbatch) -> None:
        code = self._program.functions[name].code
        for index in indices:
            self._instruction(name, code[index], slots, (*path, (name, index)), microbatch)

    def _instruction(
        self, name: str, instruction: Instruction, slots: dict[int, Value], path: Path, microbatch: Microbatch
    ) -> None:
        if instruction.op == "call" and str(instruction.args[0]) not in self._kernels:
            results: Sequence[Value] = self._call(instruction, slots, path, microbatch)
        elif instruction.op == "comm.wait":
            results = [self._awaited(instruction, slots, path)]
        else:
            results = self._issue(name, instruction, slots, path, microbatch)
        for index, value in enumerate(results):
            slot = instruction.out[index] if index < len(instruction.out) else None
            old = value if slot is None else slots.pop(slot, None)
            if slot is not None:
                slots[slot] = value
            if old is not None:
                self._release(old)
        for slot in instruction.free:
            if slot in slots:
                self._release(slots.pop(slot))

    def _call(
        self, instruction: Instruction, slots: dict[int, Value], path: Path, microbatch: Microbatch
    ) -> list[Value]:
        """The steps of a callee. What the call frees, the caller gives up before, so that the callee has it last."""
        name = str(instruction.args[0])
        function = self._program.functions[name]
        operands = list(slots_in(instruction.args[1]))
        values = [_held(slots[slot]) for slot in operands]
        for slot in instruction.free:
            if slot in operands and slot not in instruction.out and slot in slots:
                self._release(slots.pop(slot))
        inner = dict(zip(function.arguments, values, strict=True))
        self._code(name, range(len(function.code)), inner, path, _microbatch(instruction, microbatch))
        results = [_held(inner[slot]) for slot in function.results]
        for value in inner.values():
            self._release(value)
        return results

    def _awaited(self, instruction: Instruction, slots: Mapping[int, Value], path: Path) -> Value:
        """The tensor of a future: the lane of the wait goes on behind the step that makes it."""
        [slot] = instruction.reads()
        future = slots[slot]
        self._step(
            lane_of(instruction), Step("", 0, path, instruction, operands={slot: future}), [future], (), uses=False
        )
        value = Value(future.result or future.blocks, future.stream, future.number, future.clock)
        for block in value.blocks:
            block.values.append(value)
        self._steps[-1].results = [value]
        return _held(value)

    def _issue(
        self, name: str, instruction: Instruction, slots: Mapping[int, Value], path: Path, microbatch: Microbatch
    ) -> list[Value]:
        """The step of an instruction, and its results, which hold a reference each."""
        stream = self._stream(instruction)
        host = is_host_work(instruction) and self._capture
        if host and self._open:
            self._meet()
        elif not host and not self._open:
            self._begin()
        kernel = str(instruction.args[0]) if instruction.op == "call" else ""
        operands = {slot: slots[slot] for slot in instruction.reads()}
        step = Step("", 0, path, instruction, microbatch=_microbatch(instruction, microbatch), operands=operands)
        step.kernel = kernel
        written = () if instruction.into is None else slots[instruction.into].blocks
        if instruction.into is not None:
            step.operands = {**operands, instruction.into: slots[instruction.into]}
        self._step(COMPUTE if host else stream, step, list(step.operands.values()), written)
        return self._results(name, instruction, slots, step)

    def _step(
        self, stream: str, step: Step, reads: Sequence[Value], written: Sequence[Block], *, uses: bool = True
    ) -> None:
        """Give a step its place on a stream: behind what it reads, and behind the uses of what it writes."""
        if len(self._steps) > MOST_STEPS:
            raise ProgramError(
                "E0726",
                f"its streams cannot be planned: a rank runs more than {MOST_STEPS:,} instructions in a step",
                help="compile with fewer microbatches",
            )
        clock = self._clocks[stream]
        behind = [(value.stream, value.number, value.clock) for value in reads]
        behind += [(s, n, c) for block in written for s, (n, c) in block.uses.items()]
        behind += [
            late for block in self._waiting.get(stream, []) for late in self._late_uses(block) if self._due(late)
        ]
        waits: dict[str, int] = {}
        for other, number, other_clock in sorted(behind, key=lambda each: -each[1]):
            if other != stream and number > clock.get(other, 0):
                waits[other] = number
                _join(clock, other_clock)
                clock[other] = number
        step.frees_before = self._settled(stream)
        step.stream, step.number = stream, clock.get(stream, 0) + 1
        step.waits = list(waits.items())
        clock[stream] = step.number
        use = (step.number, dict(clock))
        for block in (block for value in reads if uses for block in value.blocks):
            block.uses[stream] = use
        self._steps.append(step)

    def _results(self, name: str, instruction: Instruction, slots: Mapping[int, Value], step: Step) -> list[Value]:
        clock = dict(self._clocks[step.stream])
        reads = [slots[slot] for slot in instruction.reads()]
        if step.kernel:
            aliased: tuple[int, ...] = ()
        elif instruction.into is not None:
            aliased = (instruction.into,)
        else:
            aliased = aliased_slots(instruction, self._mesh)
        shared = tuple(dict.fromkeys(block for slot in aliased for block in slots[slot].blocks))
        made: list[Block] = []

        def own(slot: int | None) -> tuple[Block, ...]:
            if shared:
                return shared
            made.append(self._block(step.stream, name, slot))
            made[-1].uses[step.stream] = (step.number, clock)
            made[-1].static = self._capture and step.is_host_work
            return (made[-1],)

        memory = [own(slot) for slot in instruction.out]
        kept: tuple[Block, ...] = ()
        if instruction.op in COLLECTIVES or instruction.op == "comm.receive_start":
            if instruction.op in COALESCED and "reduce" in instruction.kwargs and not shared:
                memory = [tuple(made)] * len(memory)
            kept = tuple(block for value in reads for block in value.blocks)
        values = []
        for blocks in memory:
            everything = tuple(dict.fromkeys((*kept, *(b for each in memory for b in each)))) if kept else blocks
            values.append(_held(_new_value(everything, step, clock, blocks if kept else ())))
        step.results, step.made = values, made
        return values

    def _release(self, value: Value) -> None:
        """Drop a reference; the last one gives memory back, behind the last step, or once its stream is behind it."""
        for block in value.blocks:
            block.holders -= 1
            if not block.holders and not block.static:
                if self._late_uses(block):
                    self._waiting.setdefault(block.stream, []).append(block)
                else:
                    last = self._steps[-1]
                    last.frees = [*last.frees, block]


def _new_value(blocks: tuple[Block, ...], step: Step, clock: Clock, result: tuple[Block, ...]) -> Value:
    value = Value(blocks, step.stream, step.number, clock, result)
    for block in blocks:
        block.values.append(value)
    return value


def _held(value: Value) -> Value:
    for block in value.blocks:
        block.holders += 1
    return value


def _join(clock: dict[str, int], other: Clock) -> None:
    for stream, number in other.items():
        if number > clock.get(stream, 0):
            clock[stream] = number


def _microbatch(instruction: Instruction, own: Microbatch) -> Microbatch:
    """The microbatch of an instruction, of its keyword, or of the function that it is in."""
    given = instruction.kwargs.get(MICROBATCH)
    if given is not None:
        return tuple(int(str(each)) for each in given) if isinstance(given, list | tuple) else int(str(given))
    if MICROBATCH_INDEX in instruction.kwargs and isinstance(own, tuple):
        return own[int(str(instruction.kwargs[MICROBATCH_INDEX]))]
    return own
