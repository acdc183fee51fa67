"""One function, walked once with what its slots hold: every future is waited on exactly once, and memory is counted.

Two rules about a slot that a started collective reads, until its wait: no instruction writes to the slot, and only an
instruction that uses it may free it (then the collective alone holds the tensor, and its memory counts until the wait).
What is assumed: ops are functional (the table refuses others), meta kernels tell views from copies as the device does,
and what an op needs beside its results is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch

from ..program.arguments import Slot, fill_in
from ..program.mesh import RankMesh
from ..program.ops import COLLECTIVES, RANK_OPS
from ..program.records import Function, Instruction
from .collectives import collective_of, drawn_of, rank_result_of, result_of
from .events import Arrival, Event, received_of, sent_of
from .shapes import NoShapes, results_of
from .slots import WAIT
from .summary import Summary, leaving
from .values import Future, Meta, Opaque, Path, Refuted, Storage, TensorValue, Value

Callee = Callable[[str, Sequence[Value], set[Storage]], Summary]
"""The summary of a function by name, for arguments of which the caller keeps some storages."""


class Frame:
    """The slots of `function` while it is walked; `held` are storages of its arguments that others keep."""

    def __init__(
        self, name: str, function: Function, arguments: Sequence[Value], held: set[Storage], mesh: RankMesh,
        callee: Callee, number: Callable[[Event], int],
    ) -> None:  # fmt: skip
        self.name = name
        self.function = function
        self.arguments = tuple(arguments)
        self.peak_bytes = 0
        self.peak_at: Path = ((name, 0),)
        self.counted: dict[Storage, None] = {}
        """Storages that are live now, in the order in which they were made."""
        self.slots: dict[int, Value] = {}
        self._mesh = mesh
        self._callee = callee
        self._number = number
        self._live_bytes = 0
        self._holds: Counter[Storage] = Counter(held)
        self._last: dict[int, Value] = {}
        self._futures: dict[Future, int] = {}
        """Every future seen, and how many slots hold it."""
        self._reading: dict[Value, list[Future]] = {}
        self._waited: list[tuple[Future, Path]] = []
        self._events: list[int] = []
        self._started: dict[Future, int] = {}
        """Collectives and receives that were started here, and their places among the events."""
        self._parts: list[tuple[int, Summary | None]] = []
        for storage in (each for value in arguments for each in value.storages):
            self.counted[storage] = None
        for slot, value in zip(function.arguments, arguments, strict=True):
            self._acquire(value)
            self.slots[slot] = self._last[slot] = value

    def run(self, start: int, end: int) -> None:
        """Walk the instructions from `start` to before `end`; raises Refuted."""
        for index, each in enumerate(self.function.code[start:end], start):
            self._step(each, ((self.name, index),))

    def hold(self, slots: Iterable[int]) -> None:
        """Keep what these slots hold to the end: it is given to the user. Raises Refuted for a future."""
        for slot in slots:
            value = self.slots[slot]
            if isinstance(value, Future):
                raise Refuted("E0708", "a result of the program is a future that was not waited on", value.start)
            self._acquire(value)

    def summary(self, results: Sequence[int]) -> Summary:
        """What the walk found; raises Refuted for a future that is neither waited on nor returned."""
        values = tuple(self.slots[slot] for slot in results)
        for future in self._futures:
            if not future.given and not future.waited and future not in values:
                end = ((self.name, len(self.function.code) - 1),)
                raise Refuted(
                    "E0706", f'a future is still not waited on when "{self.name}" ends', future.start, end,
                    help="wait for it, or return it to the caller",
                )  # fmt: skip
        return Summary(
            self.arguments, values, self.peak_bytes, self.peak_at, tuple(self._events), tuple(self._parts),
            self.name, tuple(self._waited),
        )  # fmt: skip

    def _step(self, each: Instruction, path: Path) -> None:
        early: list[Storage] = []
        if each.op == "call":
            values, early = self._call(each, path)
        elif each.op == WAIT:
            values = [self._wait(self._value(each), path)]
        else:
            values = self._results(each, path)
        if any(slot is not None for slot in each.out[len(values) :]):
            raise Refuted("E0714", f"{each.op} gives {len(values)} results, not {len(each.out)}", path)
        for value in values:
            self._acquire(value)
        self._drop(early)
        self._sample(self._live_bytes, path)
        for at, value in enumerate(values):
            slot = each.out[at] if at < len(each.out) else None
            if slot is None:
                self._drop(self._release(value))
                self._not_lost(value, path, "dropped")
            else:
                self._write(slot, value, path)
        for slot in each.free:
            if slot in self.slots:
                self._free(slot, each, path)

    def _results(self, each: Instruction, path: Path) -> list[Value]:
        try:
            if each.op in COLLECTIVES:
                return [self._start(each, self._value(each), path)]
            if each.op == "comm.send":
                self._event(sent_of(each, self._tensor(self._value(each), each.op, path).meta), path)
                return []
            if each.op == "comm.receive_start":
                return [self._receive(each, path)]
            if each.op == "rank.offset":
                return [_fresh(Meta((), (), torch.int64), path)]
            if each.op == "rank.random":
                return [_fresh(drawn_of(each), path)]
            if each.op in RANK_OPS:
                return [_fresh(rank_result_of(each, self._tensor(self._value(each), each.op, path).meta), path)]
            return self._torch(each, path)
        except (NoShapes, ValueError) as error:
            raise Refuted("E0714", f"the shape that {each.op} gives cannot be found: {error}", path) from None

    def _torch(self, each: Instruction, path: Path) -> list[Value]:
        tensors: list[TensorValue] = []

        def meta(slot: int) -> object:
            value = self.slots[slot]
            if isinstance(value, Opaque):
                return value.value
            tensors.append(self._tensor(value, each.op, path))
            return tensors[-1].meta

        args = [fill_in(value, meta) for value in each.args]
        kwargs = {key: fill_in(value, meta) for key, value in each.kwargs.items()}
        storages = {at: tensor.storage for at, tensor in enumerate(tensors)}
        results: list[Value] = []
        for given in results_of(each.op, args, kwargs):
            if given.meta is None:
                results.append(Opaque(given.value))
                continue
            storage = storages.setdefault(given.storage, Storage(given.bytes, path))
            results.append(TensorValue(given.meta, storage))
        return results

    def _start(self, each: Instruction, value: Value, path: Path) -> Future:
        operand = self._tensor(value, each.op, path)
        collective = collective_of(each, operand.meta, self._mesh)
        future = Future(path, operand, _fresh(result_of(each, operand.meta, self._mesh), path))
        if collective.axes:
            self._started[future] = len(self._events)
            self._event(collective, path)
        self._reading.setdefault(operand, []).append(future)
        return future

    def _receive(self, each: Instruction, path: Path) -> Future:
        message, meta = received_of(each)
        future = Future(path, _fresh(Meta.contiguous((0,), meta.dtype), path), _fresh(meta, path))
        self._started[future] = len(self._events)
        self._event(message, path)
        return future

    def _event(self, event: Event, path: Path) -> None:
        self._events.append(self._number(event))
        self._parts.append((path[0][1], None))

    def _wait(self, value: Value, path: Path) -> TensorValue:
        if not isinstance(value, Future):
            raise Refuted("E0708", "what is waited on is a tensor, not a future", path, *_made(value))
        if value.waited:
            raise Refuted("E0707", "a future is waited on twice", path, value.waited)
        value.waited = path
        if value in self._started:
            self._event(Arrival(len(self._events) - self._started[value]), path)
        if value.given:
            self._waited.append((value, path))
        return value.result

    def _call(self, each: Instruction, path: Path) -> tuple[list[Value], list[Storage]]:
        """The results, and the storages that the caller let go of before the call (still counted)."""
        refs = [ref.index for ref in each.args[1] if isinstance(ref, Slot)]  # type: ignore[attr-defined]
        given = [self.slots[slot] for slot in refs]
        early: list[Storage] = []
        for slot in dict.fromkeys(each.free):
            if slot in refs and slot not in each.out:
                early += self._release(self.slots.pop(slot))
        kept = {storage for value in given for storage in value.storages if self._holds[storage]}
        summary = self._callee(str(each.args[0]), given, kept)
        self._sample(self._live_bytes + summary.peak_bytes, path + summary.peak_at)
        own = {inner: outer for inner, outer in zip(summary.arguments, given, strict=True) if isinstance(outer, Future)}
        for future, place in summary.waited:
            self._wait(own[future], path + place)
        if summary.events:
            self._events += summary.events
            self._parts.append((path[0][1], summary))
        results = leaving(summary, given, path[0])
        for result in results:
            if isinstance(result, Future):
                self._reading.setdefault(result.operand, []).append(result)
        for value in given:
            if value not in results:
                self._not_lost(value, path, "given away")
        return results, early

    def _value(self, each: Instruction) -> Value:
        [ref] = each.reads()
        return self.slots[ref]

    def _tensor(self, value: Value, op: str, path: Path) -> TensorValue:
        match value:
            case TensorValue():
                return value
            case Future():
                raise Refuted("E0708", f"{op} takes a future that was not waited on", path, value.start)
        raise Refuted("E0714", f"{op} takes something that is no tensor", path)

    def _write(self, slot: int, value: Value, path: Path) -> None:
        for reader in self._readers(self._last.get(slot)):
            raise Refuted("E0709", f"slot {slot} is overwritten while a collective reads it", path, reader.start)
        old = self.slots.pop(slot, None)
        self.slots[slot] = self._last[slot] = value
        if old is not None:
            self._drop(self._release(old))
            self._not_lost(old, path, "overwritten")

    def _free(self, slot: int, each: Instruction, path: Path) -> None:
        value = self.slots.pop(slot)
        if slot not in each.reads() and slot not in each.writes():
            for reader in self._readers(value):
                raise Refuted("E0709", f"slot {slot} is freed while a collective reads it", path, reader.start)
        self._drop(self._release(value))
        self._not_lost(value, path, "freed")

    def _readers(self, value: Value | None) -> list[Future]:
        return [future for future in self._reading.get(value, ()) if not future.waited] if value is not None else []

    def _not_lost(self, value: Value, path: Path, how: str) -> None:
        if isinstance(value, Future) and not (value.given or value.waited or self._futures[value]):
            raise Refuted("E0705", f"a future is {how} before it was waited on", path, value.start)

    def _acquire(self, value: Value) -> None:
        for storage in value.storages:
            self._holds[storage] += 1
            if storage not in self.counted:
                self.counted[storage] = None
                self._live_bytes += storage.bytes
        if isinstance(value, Future):
            self._futures[value] = self._futures.get(value, 0) + 1

    def _release(self, value: Value) -> list[Storage]:
        """Let go of a value; the storages that nobody holds any more."""
        if isinstance(value, Future):
            self._futures[value] -= 1
        for storage in value.storages:
            self._holds[storage] -= 1
        return [storage for storage in dict.fromkeys(value.storages) if not self._holds[storage]]

    def _drop(self, storages: Iterable[Storage]) -> None:
        """Give back the memory of those that still nobody holds."""
        for storage in storages:
            if not self._holds[storage] and storage in self.counted:
                del self.counted[storage]
                self._live_bytes -= storage.bytes

    def _sample(self, live_bytes: int, path: Path) -> None:
        if live_bytes > self.peak_bytes:
            self.peak_bytes = live_bytes
            self.peak_at = path


def _fresh(meta: Meta, path: Path) -> TensorValue:
    return TensorValue(meta, Storage(meta.bytes, path))


def _made(value: Value) -> tuple[Path, ...]:
    return tuple(storage.made for storage in value.storages[:1])
