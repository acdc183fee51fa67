"""Abstract interpretation of one function: every future is waited on exactly once, and live memory is counted.

Two rules protect the operand of a collective from its start to its wait. No instruction writes to its slot, and only an
instruction that uses the slot may free it; the collective then keeps the tensor, and its memory counts until the wait.

Types of results come from meta kernels, or from what the program states (`types.py`).

Assumptions: ops are functional (the table of ops refuses others); meta kernels return views where the device does;
workspace inside an op is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch

from ..program.arguments import DTYPES, Slot, fill_in
from ..program.mesh import RankMesh
from ..program.ops import COLLECTIVES, OWN_OPS, RANK_OPS
from ..program.records import Function, Instruction
from .collectives import (
    collective_of,
    has_counts,
    part_of,
    random_result_of,
    rank_result_of,
    result_of,
    storages_of_results,
)
from .events import Event, receive_of, send_of
from .pieces import Calls, Own, Piece, Pieces, Waits
from .shapes import ShapeUnknown, results_of
from .slots import WAIT
from .summary import Summary, caller_results, storage_outside
from .types import FunctionTypes, Walk
from .values import (
    Future,
    Meta,
    OldValues,
    Opaque,
    Path,
    Refuted,
    Storage,
    TensorValue,
    Value,
    creators,
    fresh,
    futures_of,
)

Callee = Callable[[str, Sequence[Value], set[Storage]], Summary]
"""The summary of a function by name and arguments, of which the caller retains some storages during the call."""


class Frame:
    """The state of the walk over `function`; `retained` are storages of its arguments that callers keep."""

    def __init__(
        self, name: str, function: Function, arguments: Sequence[Value], retained: set[Storage], mesh: RankMesh,
        callee: Callee, number: Callable[[Event], int], walk: Walk,
    ) -> None:  # fmt: skip
        self.name = name
        self.function = function
        self.arguments = tuple(arguments)
        self.peak_bytes = 0
        self.peak_at: Path = ((name, 0),)
        self.counted: dict[Storage, None] = {}
        """The live storages, in the order in which they were made."""
        self.slots: dict[int, Value] = {}
        self._mesh = mesh
        self._callee = callee
        self._number = number
        self._walk = walk
        self._live_bytes = 0
        self._holders: Counter[Storage] = Counter(retained)
        self._last: dict[int, Value] = {}
        self._futures: dict[Future, int] = {}
        """By future: the number of slots that hold it."""
        self._reading: dict[Value, list[Future]] = {}
        self._old = OldValues()
        self._waited: list[tuple[Future, Path]] = []
        self._pieces: list[Piece] = []
        for storage in (storage for value in arguments for storage in value.storages):
            self.counted[storage] = None
        for index, (slot, value) in enumerate(zip(function.arguments, arguments, strict=True)):
            self._compare(slot, value, f'argument {index} of "{name}"', ((name, 0),))
            self._acquire(value)
            self.slots[slot] = self._last[slot] = value

    def run(self, start: int, end: int) -> None:
        """Walk the instructions [start, end). Raises Refuted."""
        for index, instruction in enumerate(self.function.code[start:end], start):
            self._step(instruction, ((self.name, index),))

    def keep(self, slots: Iterable[int]) -> None:
        """Keep the values of these slots live to the end, as results of the program. Raises Refuted for a future."""
        for slot in slots:
            value = self.slots[slot]
            self._old.refuse_all({slot: value}, self._end)
            if isinstance(value, Future):
                raise Refuted("E0708", "a result of the program is a future that was not waited on", value.start)
            self._acquire(value)

    def summary(self, results: Sequence[int]) -> Summary:
        """The summary after the walk. Raises Refuted for a future that is neither waited on nor returned."""
        values = tuple(self.slots[slot] for slot in results)
        self._old.refuse_all(dict(zip(results, values, strict=True)), self._end)
        for future in self._futures:
            if not future.is_argument and not future.waited and future not in values:
                raise Refuted(
                    "E0706", f'a future is still not waited on when "{self.name}" ends', future.start, self._end,
                    help="wait for it, or return it to the caller",
                )  # fmt: skip
        events = Pieces.of(self.name, self._pieces)
        waited, overwritten = tuple(self._waited), self._old.in_memory_of(self.arguments)
        return Summary(self.arguments, values, self.peak_bytes, self.peak_at, events, waited, overwritten)

    @property
    def _end(self) -> Path:
        return ((self.name, len(self.function.code) - 1),)

    def _step(self, instruction: Instruction, path: Path) -> None:
        early: list[Storage] = []
        operands = {slot: self.slots[slot] for slot in instruction.reads()}
        self._old.refuse_all(operands, path)
        if instruction.op == "call":
            values, early = self._call(instruction, path)
        elif instruction.op == WAIT:
            values = [self._wait(self._value(instruction), path)]
        else:
            values = self._results(instruction, path)
        if self._walk.has_states and instruction.op in OWN_OPS:
            self._old.may_lie_in(values, operands.values())
        if instruction.into is not None:
            values = [self._written_into(instruction.into, values[0], path)]
        if any(slot is not None for slot in instruction.out[len(values) :]):
            count = len(instruction.out)
            raise Refuted(
                "E0714", f"{instruction.op} returns {len(values)} results, but has {count} slots for them", path
            )
        for value in values:
            self._acquire(value)
        self._drop(early)
        self._update_peak(self._live_bytes, path)
        for index, value in enumerate(values):
            slot = instruction.out[index] if index < len(instruction.out) else None
            if slot is None:
                self._drop(self._release(value))
                self._refuse_lost(value, path, "dropped")
            else:
                self._write(slot, value, path)
        for slot in instruction.free:
            if slot in self.slots:
                self._free(slot, instruction, path)

    def _results(self, instruction: Instruction, path: Path) -> list[Value]:
        try:
            if instruction.op in COLLECTIVES:
                return self._start(instruction, path)
            if instruction.op == "comm.send":
                meta = self._tensor(self._value(instruction), instruction.op, path).meta
                self._pieces.append(Own(path[0][1], self._number(send_of(instruction, meta))))
                return []
            if instruction.op == "comm.receive_start":
                return [self._receive(instruction, path)]
            if instruction.op == "rank.offset":
                return [fresh(Meta((), (), torch.int64), path)]
            if instruction.op == "rank.random":
                return [fresh(random_result_of(instruction), path)]
            if instruction.op in RANK_OPS:
                return [
                    fresh(
                        rank_result_of(instruction, self._tensor(self._value(instruction), instruction.op, path).meta),
                        path,
                    )
                ]
            return self._torch(instruction, path)
        except (ShapeUnknown, ValueError) as error:
            raise Refuted(
                "E0714", f"the shapes of the results of {instruction.op} are unknown: {error}", path
            ) from None

    def _compare(self, slot: int, value: Value, what: str, path: Path) -> None:
        """Record a value's type. Raises Refuted where the program says another one of its slot."""
        if self._walk.found is not None:
            self._walk.found.add_type(slot, value)
        elif self._walk.stated is not None and (difference := self._walk.stated.difference(slot, value)):
            raise Refuted("E0728", f"{what} is {difference}", path, help="compile the program again")

    def _stated(self, instruction: Instruction, stated: FunctionTypes, path: Path) -> list[Value]:
        """The results of a torch op, as the program states them."""
        operands = {slot: self.slots[slot] for slot in instruction.reads()}
        for value in operands.values():
            if not isinstance(value, Opaque):
                self._tensor(value, instruction.op, path)
        results: list[Value] = []
        for slot in instruction.out:
            said = None if slot is None else stated.types[slot]
            if slot is None or said is None or said.is_future:
                results.append(Opaque())
                continue
            meta = Meta.contiguous(said.shape, DTYPES[said.dtype])
            if slot in stated.views:
                viewed = self._tensor(operands[stated.views[slot]], instruction.op, path)
                results.append(TensorValue(meta, viewed.storage))
            else:
                results.append(fresh(meta, path))
        return results

    def _compare_views(self, instruction: Instruction, results: Sequence[Value], path: Path) -> None:
        """Record in whose memory results lie. Raises Refuted where one is said to be a view, but is not."""
        operands = {slot: self.slots[slot] for slot in instruction.reads()}
        for slot, result in zip(instruction.out, results, strict=False):
            if slot is None or not isinstance(result, TensorValue):
                continue
            shared = {each for each, value in operands.items() if result.storage in value.storages}
            if self._walk.found is not None:
                self._walk.found.add_view(slot, shared)
            elif self._walk.stated is not None and self._walk.stated.views.get(slot, slot) not in {slot, *shared}:
                viewed = self._walk.stated.views[slot]
                message = f"slot {slot} is said to lie in the memory of slot {viewed}, but {instruction.op} copies"
                raise Refuted("E0728", message, path, help="compile the program again")

    def _torch(self, instruction: Instruction, path: Path) -> list[Value]:
        if self._walk.reads is not None:
            return self._stated(instruction, self._walk.reads, path)
        tensors: list[TensorValue] = []

        def meta(slot: int) -> object:
            value = self.slots[slot]
            if isinstance(value, Opaque):
                return value.value
            tensors.append(self._tensor(value, instruction.op, path))
            return tensors[-1].meta

        args = [fill_in(value, meta) for value in instruction.args]
        kwargs = {key: fill_in(value, meta) for key, value in instruction.kwargs.items()}
        storages = {index: tensor.storage for index, tensor in enumerate(tensors)}
        results: list[Value] = []
        for result in results_of(instruction.op, args, kwargs):
            if result.meta is None:
                results.append(Opaque(result.value))
                continue
            storage = storages.setdefault(result.storage, Storage(result.bytes, path))
            results.append(TensorValue(result.meta, storage))
        self._compare_views(instruction, results, path)
        return results

    def _start(self, instruction: Instruction, path: Path) -> list[Value]:
        """The futures of a collective, one for each of its tensors."""
        operands = [self._tensor(self.slots[slot], instruction.op, path) for slot in instruction.reads()]
        collective = collective_of(instruction, [operand.meta for operand in operands], self._mesh)
        moved = operands[:1] if has_counts(instruction) else operands
        metas = [
            result_of(part_of(instruction, index), operand.meta, self._mesh) for index, operand in enumerate(moved)
        ]
        storages = storages_of_results(instruction, metas, path)
        bucket = (*(each.storage for each in operands), *storages) if len(operands) > 1 else ()
        futures = [
            Future(path, operand, TensorValue(meta, storage), has_event=bool(collective.axes), bucket=bucket)
            for operand, meta, storage in zip(moved, metas, storages, strict=True)
        ]
        if collective.axes:
            self._pieces.append(Own(path[0][1], self._number(collective), tuple(futures)))
        for future in futures:
            self._reading.setdefault(future.operand, []).append(future)
        return [*futures]

    def _receive(self, instruction: Instruction, path: Path) -> Future:
        message, meta = receive_of(instruction)
        future = Future(path, fresh(Meta.contiguous((0,), meta.dtype), path), fresh(meta, path))
        self._pieces.append(Own(path[0][1], self._number(message), (future,)))
        return future

    def _wait(self, value: Value, path: Path) -> TensorValue:
        if not isinstance(value, Future):
            raise Refuted("E0708", "what is waited on is a tensor, not a future", path, *creators(value))
        self._mark_waited(value, path)
        if value.has_event:
            self._pieces.append(Waits(path[0][1], value))
        return value.result

    def _mark_waited(self, future: Future, path: Path) -> None:
        if future.waited:
            raise Refuted("E0707", "a future is waited on twice", path, future.waited)
        future.waited = path
        if future.is_argument:
            self._waited.append((future, path))

    def _call(self, instruction: Instruction, path: Path) -> tuple[list[Value], list[Storage]]:
        """The results, and the storages that the caller releases before the call (still counted)."""
        refs = [ref.index for ref in instruction.args[1] if isinstance(ref, Slot)]  # type: ignore[attr-defined]
        operands = [self.slots[slot] for slot in refs]
        early: list[Storage] = []
        for slot in dict.fromkeys(instruction.free):
            if slot in refs and slot not in instruction.out:
                early += self._release(self.slots.pop(slot))
        kept = {storage for value in operands for storage in value.storages if self._holders[storage]}
        summary = self._callee(str(instruction.args[0]), operands, kept)
        self._update_peak(self._live_bytes + summary.peak_bytes, path + summary.peak_at)
        own = {
            inner: outer for inner, outer in zip(summary.arguments, operands, strict=True) if isinstance(outer, Future)
        }
        for future, place in summary.waited:
            self._mark_waited(own[future], path + place)
        results = caller_results(summary, operands, path[0])
        for inner, place in summary.overwritten:
            self._overwrite(storage_outside(summary, operands, inner), path + place)
        if summary.events.count:
            own_results = [pair for pair in zip(summary.results, results, strict=True) if pair[0] not in own]
            self._pieces.append(Calls(path[0][1], summary.events, futures_of(own.items()), futures_of(own_results)))
        for result in results:
            if isinstance(result, Future):
                self._reading.setdefault(result.operand, []).append(result)
        for value in operands:
            if value not in results:
                self._refuse_lost(value, path, "passed to a call")
        return results, early

    def _written_into(self, slot: int, result: Value, path: Path) -> Value:
        """The result of an instruction in the memory of an operand, whose old value nothing reads from here on."""
        old = self._tensor(self.slots[slot], "into", path)
        if not isinstance(result, TensorValue) or (result.meta.shape, result.meta.dtype) != (
            old.meta.shape, old.meta.dtype,
        ):  # fmt: skip
            raise Refuted("E0731", f"the result does not fit into the memory of slot {slot}", path)
        self._overwrite(old.storage, path)
        return TensorValue(old.meta, old.storage)

    def _overwrite(self, storage: Storage, path: Path) -> None:
        self._old.add(storage, (*self.slots.values(), *self._last.values()), self._reading, path)

    def _value(self, instruction: Instruction) -> Value:
        [ref] = instruction.reads()
        return self.slots[ref]

    def _tensor(self, value: Value, op: str, path: Path) -> TensorValue:
        match value:
            case TensorValue():
                return value
            case Future():
                raise Refuted("E0708", f"{op} takes a future that was not waited on", path, value.start)
        raise Refuted("E0714", f"{op} takes a value that is not a tensor", path)

    def _write(self, slot: int, value: Value, path: Path) -> None:
        for reader in self._readers(self._last.get(slot)):
            raise Refuted("E0709", f"slot {slot} is overwritten while a collective reads it", path, reader.start)
        self._compare(slot, value, f"slot {slot}", path)
        old = self.slots.pop(slot, None)
        self.slots[slot] = self._last[slot] = value
        if old is not None:
            self._drop(self._release(old))
            self._refuse_lost(old, path, "overwritten")

    def _free(self, slot: int, instruction: Instruction, path: Path) -> None:
        value = self.slots.pop(slot)
        if slot not in instruction.reads() and slot not in instruction.writes():
            for reader in self._readers(value):
                raise Refuted("E0709", f"slot {slot} is freed while a collective reads it", path, reader.start)
        self._drop(self._release(value))
        self._refuse_lost(value, path, "freed")

    def _readers(self, value: Value | None) -> list[Future]:
        return [future for future in self._reading.get(value, ()) if not future.waited] if value is not None else []

    def _refuse_lost(self, value: Value, path: Path, how: str) -> None:
        if isinstance(value, Future) and not (value.is_argument or value.waited or self._futures[value]):
            raise Refuted("E0705", f"a future is {how} before it was waited on", path, value.start)

    def _acquire(self, value: Value) -> None:
        for storage in value.storages:
            self._holders[storage] += 1
            if storage not in self.counted:
                self.counted[storage] = None
                self._live_bytes += storage.bytes
        if isinstance(value, Future):
            self._futures[value] = self._futures.get(value, 0) + 1

    def _release(self, value: Value) -> list[Storage]:
        """Release one reference to a value; returns its storages without a remaining reference."""
        if isinstance(value, Future):
            self._futures[value] -= 1
        for storage in value.storages:
            self._holders[storage] -= 1
        return [storage for storage in dict.fromkeys(value.storages) if not self._holders[storage]]

    def _drop(self, storages: Iterable[Storage]) -> None:
        """Free the storages that still have no reference."""
        for storage in storages:
            if not self._holders[storage] and storage in self.counted:
                del self.counted[storage]
                self._live_bytes -= storage.bytes

    def _update_peak(self, live_bytes: int, path: Path) -> None:
        if live_bytes > self.peak_bytes:
            self.peak_bytes = live_bytes
            self.peak_at = path
