"""A tiny pipeline on a (pp=2) or (pp=2, dp=2) mesh, written by hand: two stages, any number of microbatches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from stretto.runtime.program.program import Manifest, Program
from stretto.runtime.program.records import Function, Input, Instruction, Location, Output, Pipeline, Shard

from .tiny_programs import S, step


class Frame:
    """Writes one entry: slots are numbered as they come."""

    def __init__(self, arguments: int) -> None:
        self.slots = arguments
        self.arguments = tuple(range(arguments))
        self.code: list[Instruction] = []

    def do(self, op: str, *args: Any, **kwargs: Any) -> int:
        """One instruction with one result; its slot."""
        self.slots += 1
        self.code.append(step(op, *args, out=[self.slots - 1], **kwargs))
        return self.slots - 1

    def call(self, name: str, arguments: Sequence[int], results: int, microbatch: int) -> list[int]:
        """A call for one microbatch."""
        out = list(range(self.slots, self.slots + results))
        self.slots += results
        self.code.append(step("call", name, [S(slot) for slot in arguments], out=out, microbatch=microbatch))
        return out

    def send(self, slot: int, peer: int) -> None:
        """To the other stage."""
        self.code.append(step("comm.send", S(slot), axis="pp", peer=peer, loc=1))

    def receive(self, peer: int, size: Sequence[int], dtype: str) -> int:
        """From the other stage."""
        options: dict[str, Any] = {"axis": "pp", "peer": peer, "size": list(size), "dtype": getattr(torch, dtype)}
        return self.do("comm.wait", S(self.do("comm.receive_start", **options, loc=2)))

    def total(self, slots: Sequence[int]) -> int:
        """Their sum."""
        first, *others = slots
        for slot in others:
            first = self.do("aten.add.Tensor", S(first), S(slot))
        return first

    def over_dp(self, slot: int, dp: int) -> int:
        """The sum over the data axis."""
        if dp == 1:
            return slot
        return self.do("comm.wait", S(self.do("comm.all_reduce_start", S(slot), axes=["dp"], reduce="sum")))

    def function(self, results: Sequence[int]) -> Function:
        """What was written."""
        return Function(self.slots, self.arguments, tuple(results), tuple(self.code))


@dataclass(frozen=True)
class Pipe:
    """loss = sum((x @ a @ b)^2): `a` (3, 4) on stage 0, `b` (4, 2) on stage 1, x (rows, 3) cut over dp and time."""

    microbatches: int = 2
    rows: int = 8
    dp: int = 1
    dtype: str = "float64"
    reduced: bool = True
    """Else gradients are left unreduced over dp."""

    @property
    def chunk(self) -> int:
        return self.rows // self.dp // self.microbatches

    def train(self) -> Program:
        """Fill and drain: all forwards, then all backwards, the loss to both."""
        batch = (Shard(0, ("dp",), self.rows // self.dp, self.rows),) if self.dp > 1 else ()
        left = ("dp",) if self.dp > 1 and not self.reduced else ()
        width: dict[str, Any] = {"dtype": self.dtype}
        return Program(
            manifest=Manifest("train", self.dtype, (("pp", 2), *([("dp", self.dp)] if self.dp > 1 else []))),
            inputs=(
                Input("b", "parameter", (4, 2), slot=0, requires_grad=True, stages=(1,), aliases=("b",), **width),
                Input("a", "parameter", (3, 4), slot=0, requires_grad=True, stages=(0,), aliases=("a",), **width),
                Input("x", "input", (self.rows, 3), slot=0, shards=batch, index=0, stages=(0,), **width),
                Input("seen", "buffer", (1,), slot=0, stages=(0,), **width),
                Input("loss", "tangent", (), slot=0, index=0, stages=(1,), **width),
            ),
            outputs=(
                Output("loss", "output", (), slot=0, index=0, **width),
                Output("b", "gradient", (4, 2), slot=0, stages=(1,), unreduced_over=left, **width),
                Output("a", "gradient", (3, 4), slot=0, stages=(0,), unreduced_over=left, **width),
                Output("seen", "buffer", (1,), slot=0, stages=(0,), **width),
            ),
            functions={"main_0": self._first(), "main_1": self._last(), **self._segments()},
            locations=(Location("model.py", 7, "a"), Location("model.py", 8), Location("model.py", 9)),
            pipeline=Pipeline("pp", ("main_0", "main_1"), self.microbatches),
            reference=self._reference(),
        )

    def infer(self) -> Program:
        """Only the forward: y = x @ a @ b, whole on both stages."""
        whole = self.train()
        first, last = Frame(2), Frame(1)
        for microbatch in range(self.microbatches):
            first.send(first.call("forward_0", [0, 1], 2, microbatch)[0], 1)
        parts = []
        for _ in range(self.microbatches):
            hidden = last.receive(0, (self.chunk, 4), self.dtype)
            parts.append(last.do("aten.mm.default", S(hidden), S(0)))
        result = last.do("aten.cat.default", [S(microbatch) for microbatch in parts], 0)
        last.send(result, 0)
        rows = self.rows // self.dp
        got = first.receive(1, (rows, 2), self.dtype)
        shards = whole.inputs[2].shards
        y = Output("y", "output", (self.rows, 2), self.dtype, 0, shards, index=0)
        functions = {"main_0": first.function([got]), "main_1": last.function([result]), **self._segments()}
        manifest = replace(whole.manifest, mode="infer")
        return replace(whole, manifest=manifest, inputs=whole.inputs[:3], outputs=(y,), functions=functions)

    def _segments(self) -> dict[str, Function]:
        inner = (step("rank.shard", S(0), axes=["microbatch"], dim=0, chunk=self.chunk, out=[1]),)
        forward = (
            step("call", "cut", [S(1)], out=[2]),
            step("aten.mm.default", S(2), S(0), out=[3], loc=0),
        )
        return {"cut": Function(2, (0,), (1,), inner), "forward_0": Function(4, (0, 1), (3, 2), forward)}

    def _first(self) -> Function:
        """Takes a, x, seen; gives loss, a, seen."""
        frame = Frame(3)
        kept = []
        for microbatch in range(self.microbatches):
            hidden, rows = frame.call("forward_0", [0, 1], 2, microbatch)
            frame.send(hidden, 1)
            kept.append(rows)
        gradients = []
        for rows in kept:
            change = frame.receive(1, (self.chunk, 4), self.dtype)
            gradients.append(frame.do("aten.mm.default", S(frame.do("aten.t.default", S(rows))), S(change)))
        own = frame.total(gradients)
        own = frame.over_dp(own, self.dp) if self.reduced else own
        loss = frame.receive(1, (), self.dtype)
        return frame.function([loss, own, frame.do("aten.add.Scalar", S(2), 1.0)])

    def _last(self) -> Function:
        """Takes b, the tangent; gives loss, b."""
        frame = Frame(2)
        losses, gradients = [], []
        for _ in range(self.microbatches):
            hidden = frame.receive(0, (self.chunk, 4), self.dtype)
            y = frame.do("aten.mm.default", S(hidden), S(0))
            losses.append(frame.do("aten.sum.default", S(frame.do("aten.pow.Tensor_Scalar", S(y), 2))))
            change = frame.do("aten.mul.Scalar", S(frame.do("aten.mul.Tensor", S(y), S(1))), 2.0)
            gradients.append(frame.do("aten.mm.default", S(frame.do("aten.t.default", S(hidden))), S(change)))
            frame.send(frame.do("aten.mm.default", S(change), S(frame.do("aten.t.default", S(0)))), 0)
        loss = frame.over_dp(frame.total(losses), self.dp)
        frame.send(loss, 0)
        own = frame.total(gradients)
        return frame.function([loss, frame.over_dp(own, self.dp) if self.reduced else own])

    def _reference(self) -> dict[str, Any]:
        code = [
            step("aten.mm.default", S(2), S(1), out=[4]),
            step("aten.mm.default", S(4), S(0), out=[5]),
            step("aten.pow.Tensor_Scalar", S(5), 2, out=[6]),
            step("aten.sum.default", S(6), out=[7]),
            step("aten.add.Scalar", S(3), 1.0, out=[8]),
        ]
        kinds = (("b", "parameter", (4, 2)), ("a", "parameter", (3, 4)), ("x", "input", (self.rows, 3)))
        arguments = [*kinds, ("seen", "buffer", (1,))]
        return {
            "inputs": [
                {"name": name, "kind": kind, "aliases": [], "shape": list(shape), "dtype": self.dtype,
                 "index": 0 if kind == "input" else -1}
                for name, kind, shape in arguments
            ],
            "outputs": [
                {"kind": "output", "name": "loss", "index": 0, "slot": 7},
                {"kind": "buffer", "name": "seen", "index": -1, "slot": 8},
            ],
            "slots": 9,
            "code": [instruction.to_json() for instruction in code],
        }  # fmt: skip
