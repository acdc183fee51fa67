"""Which factors of experts' results are zero for rows that did not choose the expert.

A factor is computed for a few random choices of experts, and random values of all else that it is made of. So any
spelling is known: comparisons with an expert's number, one-hot vectors, scattered weights.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
_SHAPE_ONLY = (
    aten.zeros_like.default,
    aten.zeros.default,
    aten.new_zeros.default,
    aten.ones_like.default,
    aten.ones.default,
    aten.new_ones.default,
    aten.full.default,
    aten.full_like.default,
    aten.new_full.default,
    aten.arange.default,
    aten.arange.start,
)
"""Operations whose result depends on the shapes of their operands alone."""
_SAMPLES = 2


def are_masks(factors: Sequence[Sequence[fx.Node]], chosen: fx.Node, count: int) -> bool:
    """Whether the product of each of `count` experts' factors is zero for the rows that did not choose it.

    `chosen` has the experts of each row, (.., k) of a top-k or (..).
    """
    position = {node: index for index, node in enumerate(chosen.graph.nodes)}
    return all(_Draw(chosen, count, seed, position).masks(factors) for seed in range(_SAMPLES))


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's value; empty for a tuple of tensors."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


@dataclass
class _Draw:
    """Values of nodes for one random choice of experts."""

    chosen: fx.Node
    count: int
    seed: int
    position: Mapping[fx.Node, int]
    _values: dict[fx.Node, Any] = field(default_factory=dict)
    _depends: dict[fx.Node, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)
        shape, has_several = shape_of(self.chosen), self.chosen.target is operator.getitem
        rows = shape[:-1] if has_several else shape
        scores = torch.rand(*rows, self.count, generator=self._generator)
        experts = scores.argsort(-1)[..., : shape[-1] if has_several else 1]
        self._is_chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, experts, True).reshape(-1, self.count)
        self._values[self.chosen] = experts if has_several else experts.squeeze(-1)
        self._depends[self.chosen] = True

    def masks(self, factors: Sequence[Sequence[fx.Node]]) -> bool:
        """Whether each expert's factors are zero where it is not chosen."""
        for expert, own in enumerate(factors):
            product = torch.ones(len(self._is_chosen), dtype=torch.float64)
            for factor in own:
                value = self._value(factor)
                if value is None or value.numel() != len(product):
                    return False
                product *= value.reshape(-1)
            if bool(((product != 0) & ~self._is_chosen[:, expert]).any()):
                return False
        return True

    def _value(self, node: fx.Node) -> Any:
        """The value of a node; None where it is not known."""
        for each in self._needed(node):
            if self._depends_on_choice(each) or each.target in _SHAPE_ONLY:
                self._values[each] = self._run(each)
            else:
                self._values[each] = self._drawn(each)
            if self._values[each] is None:
                return None
        return self._values[node]

    def _needed(self, node: fx.Node) -> list[fx.Node]:
        """What to compute for a node, operands first."""
        needed, left = {node}, [node]
        while left:
            each = left.pop()
            if each not in self._values and self._depends_on_choice(each):
                new = [operand for operand in each.all_input_nodes if operand not in needed]
                needed.update(new)
                left += new
        return sorted((each for each in needed if each not in self._values), key=self.position.__getitem__)

    def _depends_on_choice(self, node: fx.Node) -> bool:
        left = [node]
        while left:
            each = left[-1]
            operands = [n for n in each.all_input_nodes if self.position[n] >= self.position[self.chosen]]
            unknown = [n for n in operands if n not in self._depends]
            if each in self._depends or not unknown:
                self._depends.setdefault(each, any(self._depends[n] for n in operands))
                left.pop()
            left += [] if each in self._depends else unknown
        return self._depends[node]

    def _run(self, node: fx.Node) -> Any:
        """The result of an operation on known values; of one that needs shapes alone, on empty tensors."""

        def known(operand: fx.Node) -> Any:
            return self._values[operand] if operand in self._values else torch.empty(shape_of(operand))

        assert callable(node.target), "a placeholder depends on no choice"
        with torch.no_grad():
            return node.target(*fx.map_arg(node.args, known), **fx.map_arg(node.kwargs, known))

    def _drawn(self, node: fx.Node) -> Tensor | None:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return None
        return torch.randn(tuple(value.shape), generator=self._generator)
