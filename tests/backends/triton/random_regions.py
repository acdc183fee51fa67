"""Random regions with inputs, as programs state them, and their values in float64 by torch alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from stretto.backends.triton.region import Region
from stretto.runtime.program.arguments import Slot, dtype_name
from stretto.runtime.program.records import Instruction, SlotType
from torch import Tensor

_OF_ROWS = (
    "sum", "mean", "amax", "amin", "_softmax", "_log_softmax", "_softmax_backward_data", "_log_softmax_backward_data",
    "native_layer_norm", "native_layer_norm_backward",
)  # fmt: skip
"""Ops that reduce the last dims, beside which no kernel reduces the first ones."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def run(region: Region, inputs: Sequence[Tensor], raised: bool) -> dict[int, Tensor]:
    """The values of all slots by torch's own ops; `raised`: with every floating dtype raised to float64."""
    values = dict(zip(region.inputs, (_raise(x) if raised else x for x in inputs), strict=True))
    for instruction in region.code:
        _, name, overload = instruction.op.split(".")
        op = getattr(getattr(torch.ops.aten, name), overload)

        def read(value: object) -> object:
            if isinstance(value, Slot):
                return values[value.index]
            if isinstance(value, list | tuple):
                return [read(item) for item in value]
            if isinstance(value, torch.dtype) and value.is_floating_point and raised:
                return torch.float64
            return value

        keywords = {key: read(value) for key, value in instruction.kwargs.items()}
        results = op(*(read(value) for value in instruction.args), **keywords)
        results = results if isinstance(results, tuple) else (results,)
        for slot, result in zip(instruction.out, results, strict=True):
            if slot is not None:
                values[slot] = _raise(result) if raised else result
    return values


def _raise(x: Tensor) -> Tensor:
    return x.double() if x.dtype.is_floating_point else x


@dataclass
class RegionBuilder:
    """Appends instructions; the types of their results are those that torch gives them."""

    values: dict[int, Tensor] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    code: list[Instruction] = field(default_factory=list)

    def input(self, value: Tensor) -> int:
        self.inputs.append(len(self.values))
        self.values[len(self.values)] = value
        return self.inputs[-1]

    def call(self, op: str, *args: object, **kwargs: object) -> int:
        """Append `aten.op`; returns the slot of its (first) result."""
        name, _, overload = op.partition(".")
        function = getattr(getattr(torch.ops.aten, name), overload or "default")

        def read(v: object) -> object:
            if isinstance(v, list):
                return [read(item) for item in v]
            return self.values[v.index] if isinstance(v, Slot) else v

        results = function(*(read(a) for a in args), **{k: read(v) for k, v in kwargs.items()})
        results = results if isinstance(results, tuple) else (results,)
        slots = []
        for result in results:
            slots.append(len(self.values))
            self.values[len(self.values)] = result
        self.code.append(Instruction(f"aten.{name}.{overload or 'default'}", args, kwargs, tuple(slots)))
        return slots[0]

    def region(self, outputs: Sequence[int]) -> tuple[Region, list[Tensor]]:
        """The region of the instructions that the outputs need, and its inputs."""
        needed, code = set(outputs), []
        for instruction in reversed(self.code):
            if needed & set(instruction.writes()):
                needed |= set(instruction.reads())
                code.insert(0, instruction)
        types = {slot: SlotType(dtype_name(x.dtype), tuple(x.shape)) for slot, x in self.values.items()}
        inputs = tuple(slot for slot in self.inputs if slot in needed)
        return Region(inputs, tuple(outputs), tuple(code), types), [self.values[slot] for slot in inputs]


@dataclass
class _Random:
    """One random region under construction: `full` are the floating values of the whole shape."""

    rng: random.Random
    build: RegionBuilder
    shape: tuple[int, ...]
    full: list[int] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        return self.build.input(torch.randn(tuple(shape)).to(dtype))

    def pick(self) -> Slot:
        return Slot(self.rng.choice(self.full[-4:]))

    def tamed(self, slot: int) -> int:
        """The value, or its sine where it has grown: rounding is then compared on numbers of order 1."""
        return slot if self.build.values[slot].double().abs().max() < 20 else self.build.call("sin", Slot(slot))


def random_region(seed: int) -> tuple[Region, list[Tensor]]:
    """A region of 3 to 16 instructions on a shape of uneven extents, with inputs."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    rank = rng.randint(1, 4)
    extents = [rng.choice([1, 2, 3, 4, 5, 6, 7, 8]) for _ in range(rank - 1)]
    shape = (*extents, rng.choice([1, 2, 3, 6, 8, 16, 17, 33, 64, 100]))
    state = _Random(rng, RegionBuilder(), shape)
    for _ in range(rng.randint(1, 3)):
        state.full.append(state.tensor(shape, rng.choice(FLOATS)))
    for _ in range(rng.randint(2, 7)):
        made = rng.choice(STEPS)(state)
        state.full.append(state.tamed(made))
    outputs = [state.full[-1]]
    extra = [s for s in state.full[:-1] if s not in state.build.inputs and s != outputs[0]]
    if extra and rng.random() < 0.4:
        outputs.append(rng.choice(extra))
    if not state.build.code:
        outputs = [state.build.call("neg", Slot(outputs[0]))]
    if outputs[0] in state.build.inputs:
        outputs[0] = state.build.call("neg", Slot(outputs[0]))
    reduces = any(each.op.split(".")[1] in _OF_ROWS for each in state.build.code)
    if rank > 1 and not reduces and rng.random() < 0.5:
        dims, kind = list(range(rng.randint(1, rank - 1))), rng.choice(["sum.dim_IntList", "mean.dim", "amax"])
        outputs.append(state.build.call(kind, Slot(outputs[0]), dims, rng.random() < 0.5))
    return state.build.region(outputs)


def _unary(s: _Random) -> int:
    op = s.rng.choice(
        ["neg", "abs", "sin", "cos", "tanh", "sigmoid", "silu", "relu", "erf", "gelu", "square", "exp", "log"]
    )
    x = s.pick()
    if op == "exp":
        x = Slot(s.build.call("tanh", x))
    if op == "log":
        x = Slot(s.build.call("add.Scalar", Slot(s.build.call("abs", x)), 0.5))
    return s.build.call(op, x)


def _gelu_tanh(s: _Random) -> int:
    return s.build.call("gelu", s.pick(), approximate="tanh")


def _power(s: _Random) -> int:
    x = s.build.call("add.Scalar", Slot(s.build.call("abs", s.pick())), 0.5)
    return s.build.call("pow.Tensor_Scalar", Slot(x), s.rng.choice([2, 3, 0.5, -0.5, -1, 2.0]))


def _root(s: _Random) -> int:
    x = s.build.call("add.Scalar", Slot(s.build.call("square", s.pick())), 0.1)
    return s.build.call(s.rng.choice(["rsqrt", "sqrt", "reciprocal"]), Slot(x))


def _broadcast_operand(s: _Random) -> Slot:
    """An input that broadcasts to the shape, or a value of the whole shape."""
    if s.rng.random() < 0.4:
        return s.pick()
    shape = [e if s.rng.random() < 0.5 else 1 for e in s.shape]
    return Slot(s.tensor(shape[s.rng.randint(0, len(shape)) :], s.rng.choice(FLOATS)))


def _binary(s: _Random) -> int:
    op = s.rng.choice(["mul.Tensor", "add.Tensor", "sub.Tensor", "maximum", "minimum"])
    return s.build.call(op, s.pick(), _broadcast_operand(s))


def _scaled_sum(s: _Random) -> int:
    return s.build.call(s.rng.choice(["add.Tensor", "sub.Tensor"]), s.pick(), _broadcast_operand(s), alpha=0.5)


def _division(s: _Random) -> int:
    below = s.build.call("add.Scalar", Slot(s.build.call("abs", _broadcast_operand(s))), 0.5)
    return s.build.call("div.Tensor", s.pick(), Slot(below))


def _scalar(s: _Random) -> int:
    op = s.rng.choice(["mul.Scalar", "add.Scalar", "sub.Scalar", "rsub.Scalar", "div.Scalar"])
    return s.build.call(op, s.pick(), s.rng.choice([2, 0.25, -1.5]))


def _cast(s: _Random) -> int:
    return s.build.call("_to_copy", s.pick(), dtype=s.rng.choice(FLOATS))


def _clamp(s: _Random) -> int:
    return s.build.call("clamp", s.pick(), *s.rng.choice([(-0.5, 0.7), (None, 0.3), (-0.2,)]))


def _mask(s: _Random) -> Slot:
    """A mask from inputs, which are exact in any dtype."""
    kind = s.rng.randint(0, 3)
    if kind == 0:
        return Slot(s.build.input(torch.rand(s.shape) < 0.5))
    if kind == 1:
        x = s.tensor(s.shape, s.rng.choice(FLOATS))
        return Slot(s.build.call(s.rng.choice(["ge.Scalar", "lt.Scalar", "gt.Scalar"]), Slot(x), 0))
    if kind == 2 and len(s.shape) > 1:
        rows = s.build.call("arange", s.shape[-2], dtype=torch.int64)
        columns = s.build.call("arange", s.shape[-1], dtype=torch.int64)
        return Slot(s.build.call("ge.Tensor", Slot(s.build.call("unsqueeze", Slot(rows), 1)), Slot(columns)))
    both = [Slot(s.build.input(torch.rand(s.shape[-1:]) < 0.7)), Slot(s.build.input(torch.rand(s.shape) < 0.7))]
    mask = s.build.call(s.rng.choice(["logical_and", "bitwise_or.Tensor"]), *both)
    return Slot(s.build.call("logical_not", Slot(mask)))


def _where(s: _Random) -> int:
    if s.rng.random() < 0.3:
        return s.build.call("masked_fill.Scalar", s.pick(), _full_mask(s), -1.25)
    if s.rng.random() < 0.5:
        return s.build.call("where.ScalarOther", _full_mask(s), s.pick(), 0.0)
    return s.build.call("where.self", _full_mask(s), s.pick(), s.pick())


def _full_mask(s: _Random) -> Slot:
    return Slot(s.build.call("expand", _mask(s), list(s.shape)))


def _rotate(s: _Random) -> int:
    """The second half before the first, as rotary embeddings have it, along a random dim."""
    dim = s.rng.randrange(len(s.shape))
    x, half = s.pick(), s.shape[dim] // 2
    first = s.build.call("slice.Tensor", x, dim, 0, half)
    second = s.build.call("slice.Tensor", x, dim, half, 2**63 - 1)
    return s.build.call("cat", [Slot(s.build.call("neg", Slot(second))), Slot(first)], dim)


def _reshaped(s: _Random) -> int:
    flat = s.build.call("view", Slot(s.build.call("clone", s.pick())), _other_shape(s))
    y = s.build.call("sin", Slot(flat))
    return s.build.call("reshape", Slot(y), list(s.shape))


def _other_shape(s: _Random) -> list[int]:
    numel = prod(s.shape)
    divisors = [d for d in range(1, numel + 1) if numel % d == 0]
    first = s.rng.choice(divisors)
    return [first, numel // first]


def _permuted(s: _Random) -> int:
    order = list(range(len(s.shape)))
    s.rng.shuffle(order)
    other = s.tensor([s.shape[d] for d in order], s.rng.choice(FLOATS))
    inverse = [order.index(d) for d in range(len(order))]
    return s.build.call("add.Tensor", s.pick(), Slot(s.build.call("permute", Slot(other), inverse)))


def _padded(s: _Random) -> int:
    cut = s.shape[-1] - 1
    if cut == 0:
        return _unary(s)
    piece = s.build.call("slice.Tensor", s.pick(), -1, 1, 2**63 - 1)
    return s.build.call("constant_pad_nd", Slot(piece), s.rng.choice([[1, 0], [0, 1]]), 0.5)


def _embedding(s: _Random) -> int:
    table = s.tensor([11, s.shape[-1]], s.rng.choice(FLOATS))
    ids = s.build.input(torch.randint(0, 11, s.shape[:-1]))
    return s.build.call("add.Tensor", s.pick(), Slot(s.build.call("embedding", Slot(table), Slot(ids))))


def _picked(s: _Random) -> int:
    """Each row minus one of its elements, as cross-entropy reads the label's score."""
    labels = s.build.input(torch.randint(0, s.shape[-1], (*s.shape[:-1], 1)))
    x = s.pick()
    return s.build.call("sub.Tensor", x, Slot(s.build.call("gather", x, -1, Slot(labels))))


def _scattered(s: _Random) -> int:
    labels = s.build.input(torch.randint(0, s.shape[-1], (*s.shape[:-1], 1)))
    source = s.tensor((*s.shape[:-1], 1), torch.float32)
    zeros = s.build.call("full", list(s.shape), 0.0, dtype=torch.float32)
    hit = s.build.call("scatter_add", Slot(zeros), -1, Slot(labels), Slot(source))
    return s.build.call("add.Tensor", s.pick(), Slot(hit))


def _reduced(s: _Random) -> int:
    op = s.rng.choice(["sum.dim_IntList", "mean.dim", "amax", "amin"])
    x = s.pick()
    if s.rng.random() < 0.5:
        row = s.build.call(op, x, [-1], True)
    else:
        row = s.build.call("unsqueeze", Slot(s.build.call(op, x, [len(s.shape) - 1])), -1)
    return s.build.call("sub.Tensor", x, Slot(row))


def _softmax(s: _Random) -> int:
    return s.build.call(s.rng.choice(["_softmax", "_log_softmax"]), s.pick(), -1, False)


def _softmax_backward(s: _Random) -> int:
    y = s.tensor(s.shape, torch.float32)
    name = s.rng.choice(["_softmax_backward_data", "_log_softmax_backward_data"])
    x = s.build.call("_to_copy", s.pick(), dtype=torch.float32)
    return s.build.call(name, Slot(x), Slot(y), -1, torch.float32)


def _layer_norm(s: _Random) -> int:
    x = s.build.call("_to_copy", s.pick(), dtype=torch.float32)
    weight, bias = s.tensor(s.shape[-1:], torch.float32), s.tensor(s.shape[-1:], torch.float32)
    return s.build.call("native_layer_norm", Slot(x), [s.shape[-1]], Slot(weight), Slot(bias), 1e-2)


def _backward(s: _Random) -> int:
    x, gradient = s.tensor(s.shape, torch.float32), s.build.call("_to_copy", s.pick(), dtype=torch.float32)
    name = s.rng.choice(["gelu_backward", "silu_backward", "sigmoid_backward", "tanh_backward", "threshold_backward"])
    more = (0.1,) if name == "threshold_backward" else ()
    return s.build.call(name, Slot(gradient), Slot(x), *more)


STEPS: list[Callable[[_Random], int]] = [
    _unary, _unary, _gelu_tanh, _power, _root, _binary, _binary, _scaled_sum, _division, _scalar, _cast, _clamp, _where,
    _where, _rotate, _reshaped, _permuted, _padded, _embedding, _picked, _scattered, _reduced, _reduced, _softmax,
    _softmax_backward, _layer_norm, _backward,
]  # fmt: skip
