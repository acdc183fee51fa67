"""Find loops over a list of experts in which every expert computes all rows, and a router's choice masks the results.

    for number, expert in enumerate(self.experts):
        y = y + expert(x) * weights[:, number, None]          # zero for a row that did not choose the expert

A loop is a chain of sums whose terms are alike: an expert's result, computed from parameters that nothing else reads,
times a factor for each row. The factor must be zero for every row that did not choose the expert: it is computed for a
few random choices, so that any spelling of the mask is known. Then only the chosen experts of a row add to the sum.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx

from .choice_masks import are_masks, shape_of

aten = torch.ops.aten
_ADDS = (aten.add.Tensor, aten.add_.Tensor)
_ZEROS = (aten.zeros_like.default, aten.zeros.default, aten.new_zeros.default)
_NEAREST = 64
"""How many operations before a mask a router's choice is looked for."""


@dataclass(frozen=True)
class ExpertLoop:
    """A sum over experts, each of which computes all rows."""

    end: fx.Node
    """The whole sum."""
    rest: tuple[fx.Node, ...]
    """What is added to the experts' results."""
    results: tuple[fx.Node, ...]
    """By expert, its result for all rows (.., features)."""
    factors: tuple[tuple[fx.Node, ...], ...]
    """By expert, what its rows are multiplied by, each (.., 1)."""
    chosen: fx.Node
    """The experts of each row: indices (.., k) of a router's largest scores, or (..) for one."""

    @property
    def rows(self) -> tuple[int, ...]:
        """The leading dims of the rows."""
        return shape_of(self.results[0])[:-1]


def expert_loops(graph: fx.Graph) -> Iterator[ExpertLoop]:
    """The loops of a forward before autograd, with static shapes."""
    inner: set[fx.Node] = set()
    for node in reversed([*graph.nodes]):
        if node.target in _ADDS and node not in inner:
            links, terms, rest = _chain(node)
            inner.update(links)
            loop = _loop(node, links, terms, rest) if len(terms) > 1 else None
            if loop is not None:
                yield loop


def private(root: fx.Node) -> dict[fx.Node, None]:
    """The operations and tensors that nothing but a value depends on, the value first."""
    cone: dict[fx.Node, None] = {root: None}
    left = [root]
    while left:
        for operand in left.pop().all_input_nodes:
            is_own = operand.op in ("call_function", "get_attr") and all(user in cone for user in operand.users)
            if is_own and operand not in cone:
                cone[operand] = None
                left.append(operand)
    return cone


def _chain(end: fx.Node) -> tuple[list[fx.Node], list[fx.Node], list[fx.Node]]:
    """The sums of a chain, the products that it adds in the order of the forward, and what else it adds."""
    links: list[fx.Node] = []
    terms: list[fx.Node] = []
    link: Any = end
    while isinstance(link, fx.Node) and link.target in _ADDS and (link is end or len(link.users) == 1):
        if link.kwargs:
            break
        first, second = _operands(link)
        if _is_term(second):
            terms.append(second)
            following: Any = first
        elif link.target is aten.add.Tensor and _is_term(first):
            terms.append(first)
            following = second
        else:
            break
        links.append(link)
        link = following
    if _is_term(link):
        terms.append(link)
        link = 0
    return links, terms[::-1], [link] if isinstance(link, fx.Node) else []


def _operands(link: fx.Node) -> tuple[Any, Any]:
    first, second, *_ = link.args
    return first, second


def _is_term(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.target is aten.mul.Tensor and len(value.users) == 1


def _loop(end: fx.Node, links: list[fx.Node], terms: list[fx.Node], rest: list[fx.Node]) -> ExpertLoop | None:
    split = [_split(term) for term in terms]
    parameters = [_parameters(result) if factors else () for result, factors in split]
    common = max(parameters, key=parameters.count)
    mine = [index for index, each in enumerate(parameters) if each == common]
    if len(mine) < 2 or not common:
        return None
    results = tuple(split[index][0] for index in mine)
    factors = tuple(split[index][1] for index in mine)
    kept = [term for index, term in enumerate(terms) if index not in mine]
    if any(link.target is aten.add_.Tensor for link in links) and not _is_own_zero(rest):
        return None  # another tensor may be changed
    if len({(shape_of(each), each.meta["val"].dtype) for each in results}) > 1 or not shape_of(results[0]):
        return None
    rows = shape_of(results[0])[:-1]
    if not all(isinstance(extent, int) for extent in shape_of(results[0])):
        return None
    if any(shape_of(factor) != (*rows, 1) for each in factors for factor in each):
        return None
    choices = (_router_choice(factor, len(results), prod(rows)) for factor in factors[0])
    chosen = next((each for each in choices if each and are_masks(factors, each, len(results))), None)
    if chosen is None:
        return None
    return ExpertLoop(end, (*([] if _is_own_zero(rest) else rest), *kept), results, factors, chosen)


def _split(term: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """A product as a value with features, and its factors that have one feature."""
    factors: list[fx.Node] = []
    while term.target is aten.mul.Tensor and all(isinstance(operand, fx.Node) for operand in term.args):
        first, second = (operand for operand in term.args if isinstance(operand, fx.Node))
        narrow = [shape_of(operand)[-1:] == (1,) for operand in (first, second)]
        if narrow == [False, True]:
            term, factor = first, second
        elif narrow == [True, False]:
            term, factor = second, first
        else:
            break
        factors.append(factor)
        if len(term.users) > 1:
            break
    return term, tuple(factors)


def _parameters(result: fx.Node) -> tuple[Any, ...]:
    """What an expert's parameters have in common with those of its like."""
    tensors = [node for node in private(result) if node.op == "get_attr"]
    return tuple((shape_of(node), node.meta["val"].dtype) for node in tensors)


def _is_own_zero(rest: list[fx.Node]) -> bool:
    return not rest or (rest[0].target in _ZEROS and len(rest[0].users) == 1)


def _router_choice(factor: fx.Node, count: int, rows: int) -> fx.Node | None:
    """The indices of the largest of `count` scores that a factor depends on; the nearest ones."""
    left, seen = deque([factor]), {factor}
    while left and len(seen) < _NEAREST:
        node = left.popleft()
        if _is_choice(node, count) and prod(shape_of(node)) % rows == 0:
            return node
        new = [operand for operand in node.all_input_nodes if operand not in seen]
        seen.update(new)
        left.extend(new)
    return None


def _is_choice(node: fx.Node, count: int) -> bool:
    """Whether a node has the indices of the largest of `count` scores."""
    made = node.args[0] if node.target is operator.getitem and node.args[1] == 1 else node
    if not isinstance(made, fx.Node) or made.target not in (aten.topk.default, aten.argmax.default) or made.kwargs:
        return False
    scores, *options = made.args
    if made.target is aten.topk.default:
        _, dim, largest = (*options, -1, True)[:3] if len(options) == 1 else (*options, True)[:3]
    else:
        dim, largest = options[0] if options else None, True
    if not isinstance(scores, fx.Node) or not largest:
        return False
    return dim in (-1, len(shape_of(scores)) - 1) and shape_of(scores)[-1] == count
