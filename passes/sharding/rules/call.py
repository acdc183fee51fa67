"""One call of an op, as sharding rules read it: operands by their schema's names, tensors as shape and dtype.

The ops of the nn dialect have no torch schema: their operands are named here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ....ops.overloads import overload
from .strategy import TensorMeta

_ATTENTION = ("mask", "causal", "scale", "q_offset", "k_offset")
NN_OPERANDS: dict[str, tuple[str, ...]] = {
    "nn.attention": ("q", "k", "v", *_ATTENTION),
    "nn.attention_backward": ("grad_out", "q", "k", "v", "out", "lse", *_ATTENTION),
    "nn.merge_attention": ("total", "weight", "highest", "out", "lse"),
    "nn.rms_norm": ("x", "weight"),
    "nn.rms_norm_backward": ("dy", "x", "rstd", "weight"),
    "nn.layer_norm": ("x", "weight", "bias", "normalized_shape"),
    "nn.layer_norm_backward": ("dy", "x", "mean", "rstd", "weight", "bias", "normalized_shape"),
    "nn.rotary": ("x", "cos", "sin"),
    "nn.rotary_backward": ("x", "cos", "sin"),
    "nn.cross_entropy": ("logits", "labels", "ignore_index"),
    "nn.cross_entropy_backward": ("scale", "logits", "labels", "lse", "ignore_index"),
    "nn.nll_loss": ("scores", "labels", "weight", "ignore_index"),
    "nn.nll_loss_backward": ("grad", "scores", "labels", "weight", "ignore_index"),
    "stretto.grouped_mm.default": ("input", "weight", "offs"),
    "stretto.grouped_mm_backward.default": ("input", "weight", "offs", "grad_output"),
    "nn.matmul": ("a", "b"),
    "nn.linear": ("x", "weight", "bias"),
    "nn.sum_of_outer_products": ("a", "b"),
    "nn.expert_linear": ("x", "weight", "experts", "bound", "capacity"),
    "nn.expert_outer_products": ("a", "b", "experts", "weight", "bound", "capacity"),
    "nn.kept_experts": ("experts", "count", "capacity"),
    "nn.random": ("state", "number", "like", "size", "below"),
}
"""Of each op without a torch schema, the operands that its rule reads, in order; tensors may be absent or None."""


@dataclass(frozen=True)
class Call:
    """An op, its operands by name in schema order (defaults filled in), and what it returns."""

    op: str
    operands: Mapping[str, object]
    outputs: tuple[TensorMeta | None, ...]

    @property
    def inputs(self) -> tuple[TensorMeta, ...]:
        """The tensor operands, lists flattened, absent optionals skipped."""
        return tuple(self.tensors())

    def tensors(self) -> Iterator[TensorMeta]:
        """The tensor operands in schema order."""
        for value in self.operands.values():
            yield from tensors_in(value)

    def names(self) -> tuple[str, ...]:
        """For each of `inputs`, the name of the operand it belongs to."""
        return tuple(name for name, value in self.operands.items() for _ in tensors_in(value))

    def meta(self, name: str) -> TensorMeta:
        """The tensor operand `name`, which must be given."""
        value = self.operands[name]
        if not isinstance(value, TensorMeta):
            raise TypeError(f'operand "{name}" of {self.op} is not a tensor: {value!r}')
        return value

    def maybe(self, name: str) -> TensorMeta | None:
        """The tensor operand `name`, or None where it is absent."""
        value = self.operands.get(name)
        return value if isinstance(value, TensorMeta) else None

    def integer(self, name: str) -> int:
        """The int operand `name`, which must be given."""
        value = self.operands[name]
        if not isinstance(value, int):
            raise TypeError(f'operand "{name}" of {self.op} is not an int: {value!r}')
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """The list operand `name` of ints; () where it is None."""
        value = self.operands[name]
        if value is None:
            return ()
        if isinstance(value, int):
            return (value,)
        if not isinstance(value, (list, tuple)):
            raise TypeError(f'operand "{name}" of {self.op} is not a list: {value!r}')
        return tuple(int(item) for item in value)

    def flag(self, name: str) -> bool:
        """Whether the operand `name` is given and true."""
        return bool(self.operands.get(name))

    def out(self, index: int = 0) -> TensorMeta:
        """The output `index`, which must be there."""
        meta = self.outputs[index]
        if meta is None:
            raise TypeError(f"{self.op} returns nothing at {index}")
        return meta


def tensors_in(value: object) -> Iterator[TensorMeta]:
    """The tensors in one operand."""
    if isinstance(value, TensorMeta):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def bind(
    op: str, args: tuple[object, ...], kwargs: Mapping[str, object], outputs: tuple[TensorMeta | None, ...]
) -> Call | None:
    """Name the operands of a call by its schema; None for an unknown op."""
    if op in NN_OPERANDS:
        named = dict(zip(NN_OPERANDS[op], args, strict=False))
        return Call(op, {**named, **kwargs}, outputs)
    torch_op = overload(op)
    if torch_op is None:
        return None
    operands: dict[str, object] = {}
    for index, argument in enumerate(torch_op._schema.arguments):
        if index < len(args):
            operands[argument.name] = args[index]
        else:
            operands[argument.name] = kwargs.get(argument.name, argument.default_value)
    return Call(op, operands, outputs)
