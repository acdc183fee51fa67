"""Rewrite every random op of torch as `stretto::random` (`random_op.py`) and deterministic ops.

Before                                   After
  %y = dropout(%x, 0.1, True)              %m = random(like %x, number 3, below 0.9 * 2^32)
                                           %y = (%x * %m) * (1 / 0.9)

Random ops are numbered in graph order. `checks.py` refuses those without a rule here. What a draw depends on, such as
the mean of `normal`, gets the gradient that torch defines: zeros.

Sources: the definitions of torch's own ops; Box and Muller (1958) for normal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import fx

from ..captured import CaptureError
from ..metadata import source_span
from .gradient_paths import may_require_gradient
from .random_op import RANDOM

aten = torch.ops.aten
_WORDS = 1 << 32
_BITS = {torch.float16: 11, torch.bfloat16: 8}
"""Random bits of a uniform number, few enough that none rounds to 1; 24 for wider dtypes."""
_LARGEST_RANGE = 1 << 31
_LEAST_EXPONENTIAL = 2.0**-24
"""Where u rounds to 1: half of what float32 resolves there, as in torch's kernels."""

Result = fx.Node | tuple[fx.Node, ...] | None
Arguments = dict[str, Any]


def expand_random_ops(graph: fx.Graph) -> None:
    """Rewrite a graph before autograd, in place. Errors: E0217 for a range of integers above 2^31."""
    count = 0
    trained = may_require_gradient(graph)
    for node in list(graph.nodes):
        rule = _RULES.get(_packet(node)) if node.op == "call_function" else None
        if rule is None:
            continue
        with graph.inserting_before(node):
            writer = _Writer(graph, node, count, trained)
            result = rule(writer, _arguments(node))
        count = writer.count
        if result is not None:
            _replace(graph, node, result)


def _packet(node: fx.Node) -> str:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or "generator" in target._overloadname:
        return ""
    return target._schema.name.removeprefix("aten::")


def _arguments(node: fx.Node) -> Arguments:
    """The arguments by name, with the schema's defaults; "input" is an alias of "self"."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    by_name = {argument.name: argument.default_value for argument in schema}
    by_name |= dict(zip(by_name, node.args, strict=False)) | dict(node.kwargs)
    return {"input": by_name.get("self"), **by_name}


def _replace(graph: fx.Graph, node: fx.Node, result: fx.Node | tuple[fx.Node, ...]) -> None:
    assert isinstance(node.target, torch._ops.OpOverload)
    if isinstance(result, tuple):
        for element, value in zip(result, node.meta["val"], strict=True):
            element.meta["val"] = value
        for user in list(node.users):
            user.replace_all_uses_with(result[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
    else:
        if node.target._schema.is_mutable:
            with graph.inserting_before(node):
                result = _Writer(graph, node, 0, frozenset())(aten.copy_.default, node.args[0], result)
        result.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(result)
    graph.erase_node(node)


class _Writer:
    """Adds nodes in place of a node, with its metadata; counts the random ops."""

    def __init__(self, graph: fx.Graph, node: fx.Node, count: int, trained: Collection[fx.Node]) -> None:
        self.node = node
        self.count = count
        self._graph = graph
        self._trained = trained
        self._meta = {key: value for key, value in node.meta.items() if key != "val"}

    def __call__(self, op: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> fx.Node:
        node = self._graph.call_function(op, args, kwargs)
        node.meta = dict(self._meta)
        return node

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the node's result."""
        value: torch.Tensor = self.node.meta["val"]
        return value.dtype

    def words(self, like: Any = None, size: Any = None, below: int | None = None) -> fx.Node:
        """Add one `stretto::random`."""
        self.count += 1
        return self(RANDOM, None, like, None if like is not None else list(size), self.count - 1, below)

    def keep(self, probability: float, like: Any = None, size: Any = None) -> fx.Node:
        """A mask that is true with this probability."""
        return self.words(like, size, round(probability * _WORDS))

    def uniform(self, dtype: torch.dtype, like: Any = None, size: Any = None) -> fx.Node:
        """Uniform numbers in [0, 1)."""
        bits = _BITS.get(dtype, 24)
        high = self(aten.bitwise_right_shift.Tensor_Scalar, self.words(like, size), 32 - bits)
        return self(aten.mul.Tensor, self.cast(high, dtype), 2.0**-bits)

    def normal(self, dtype: torch.dtype, like: Any = None, size: Any = None) -> fx.Node:
        """Standard normal numbers: sqrt(-2 ln u) cos(2 pi v), u in (0, 1], v in [0, 1)."""
        wide = torch.promote_types(dtype, torch.float32)
        u = self(aten.mul.Tensor, self.cast(self(aten.add.Tensor, self.words(like, size), 1), wide), 1 / _WORDS)
        radius = self(aten.sqrt.default, self(aten.mul.Tensor, self(aten.log.default, u), -2.0))
        angle = self(aten.mul.Tensor, self.cast(self.words(like, size), wide), 2 * math.pi / _WORDS)
        return self.cast(self(aten.mul.Tensor, radius, self(aten.cos.default, angle)), dtype)

    def cast(self, value: fx.Node, dtype: torch.dtype) -> fx.Node:
        return self(aten._to_copy.default, value, dtype=dtype)

    def detached(self, value: Any) -> Any:
        """The value, detached if it may require a gradient."""
        return self(aten.detach.default, value) if value in self._trained else value

    def with_zero_gradients(self, result: fx.Node, *sources: Any) -> fx.Node:
        """`result`, with zeros as the gradients of `sources`: eager mode has zeros there too, not None.

        A selection is exact where a multiplication by 0 would make NaN of an infinite source.
        """
        for source in dict.fromkeys(source for source in sources if source in self._trained):
            never = self(aten.full.default, [], False, dtype=torch.bool, device=torch.device("cpu"), pin_memory=False)
            same = source if source.meta["val"].dtype is self.dtype else self.cast(source, self.dtype)
            result = self(aten.where.self, never, same, result)
        return result


def _apply_dropout(write: _Writer, x: fx.Node, p: float, mask: fx.Node) -> fx.Node:
    masked = write(aten.mul.Tensor, x, mask)
    return masked if p >= 1 else write(aten.mul.Tensor, masked, 1 / (1 - p))


def _dropout(write: _Writer, arguments: Arguments) -> Result:
    if not arguments["train"] or not arguments["p"]:
        return None
    return _apply_dropout(write, arguments["input"], arguments["p"], write.keep(1 - arguments["p"], arguments["input"]))


def _native_dropout(write: _Writer, arguments: Arguments) -> Result:
    if arguments["train"] is False or not arguments["p"]:
        return None
    mask = write.keep(1 - arguments["p"], arguments["input"])
    return _apply_dropout(write, arguments["input"], arguments["p"], mask), mask


def _feature_mask(write: _Writer, arguments: Arguments) -> fx.Node:
    """One mask element per example and feature (channel), broadcast over the other dims."""
    shape = arguments["input"].meta["val"].shape
    return write.keep(1 - arguments["p"], size=[*shape[:2], *[1] * (len(shape) - 2)])


def _feature_dropout(write: _Writer, arguments: Arguments) -> Result:
    if not arguments["train"] or not arguments["p"]:
        return None
    return _apply_dropout(write, arguments["input"], arguments["p"], _feature_mask(write, arguments))


_ALPHA = 1.7580993408473766
"""Minus the value of a dropped unit: the limit of SELU, Klambauer et al. (arXiv:1706.02515)."""


def _alpha_dropped(write: _Writer, arguments: Arguments, mask: Callable[[], fx.Node]) -> Result:
    """a (x where kept, -alpha elsewhere) + a alpha p, which keeps mean 0 and variance 1."""
    p, x = arguments["p"], arguments["input"]
    if not arguments["train"] or not p:
        return None
    if p == 1:
        return write(aten.mul.Tensor, x, 0.0)
    a = 1 / math.sqrt((_ALPHA * _ALPHA * p + 1) * (1 - p))
    keep = mask()
    dropped = write(aten.mul.Tensor, write.cast(write(aten.logical_not.default, keep), write.dtype), -_ALPHA * a)
    scaled = write(aten.mul.Tensor, write(aten.mul.Tensor, x, keep), a)
    return write(aten.add.Tensor, write(aten.add.Tensor, scaled, dropped), _ALPHA * a * p)


def _alpha_dropout(write: _Writer, arguments: Arguments) -> Result:
    return _alpha_dropped(write, arguments, lambda: write.keep(1 - arguments["p"], arguments["input"]))


def _feature_alpha_dropout(write: _Writer, arguments: Arguments) -> Result:
    return _alpha_dropped(write, arguments, lambda: _feature_mask(write, arguments))


def _attention(write: _Writer, arguments: Arguments) -> Result:
    """softmax(q k^T scale + mask), some weights dropped, times v."""
    p, query, key, value = arguments["dropout_p"], arguments["query"], arguments["key"], arguments["value"]
    if not p:
        return None
    tokens = [query.meta["val"].shape[-2], key.meta["val"].shape[-2]]
    if arguments["enable_gqa"]:
        repeats = query.meta["val"].shape[-3] // key.meta["val"].shape[-3]
        key, value = (write(aten.repeat_interleave.self_int, tensor, repeats, -3) for tensor in (key, value))
    scale = arguments["scale"] if arguments["scale"] is not None else query.meta["val"].shape[-1] ** -0.5
    query = write(aten.mul.Tensor, query, scale)
    scores = write(aten.matmul.default, query, write(aten.transpose.int, key, -2, -1))
    masked_keys = _masked_keys(write, arguments, tokens)
    if masked_keys is not None:
        scores = write(aten.masked_fill.Scalar, scores, masked_keys, torch.finfo(write.dtype).min)
    elif arguments["attn_mask"] is not None:
        scores = write(aten.add.Tensor, scores, arguments["attn_mask"])
        # A row of -inf is a query that sees no key. Torch gives it weights and gradients of 0; a softmax gives NaN.
        masked_keys = write(aten.eq.Scalar, write(aten.amax.default, scores, [-1], True), -math.inf)
        scores = write(aten.masked_fill.Scalar, scores, masked_keys, 0.0)
    weights = write(aten.softmax.int, scores, -1)
    if masked_keys is not None and not arguments["is_causal"]:
        weights = write(aten.masked_fill.Scalar, weights, masked_keys, 0.0)
    return write(aten.matmul.default, _apply_dropout(write, weights, p, write.keep(1 - p, weights)), value)


def _masked_keys(write: _Writer, arguments: Arguments, sizes: Sequence[Any]) -> fx.Node | None:
    """The mask of keys that a query may not attend to; None for an additive mask or none.

    A fully masked row gives 0 in torch.
    """
    if arguments["is_causal"]:
        visible = write(aten.ones.default, list(sizes), dtype=torch.bool, device=torch.device("cpu"), pin_memory=False)
        return write(aten.logical_not.default, write(aten.tril.default, visible))
    mask = arguments["attn_mask"]
    if mask is None or mask.meta["val"].dtype is not torch.bool:
        return None
    return write(aten.logical_not.default, mask)


def _rand(write: _Writer, arguments: Arguments) -> Result:
    return write.uniform(write.dtype, arguments.get("self"), arguments.get("size"))


def _randn(write: _Writer, arguments: Arguments) -> Result:
    return write.normal(write.dtype, arguments.get("self"), arguments.get("size"))


def _randint(write: _Writer, arguments: Arguments) -> Result:
    low, high = arguments.get("low", 0), arguments["high"]
    if not (isinstance(low, int) and isinstance(high, int) and high - low <= _LARGEST_RANGE):
        raise CaptureError(
            "E0217",
            f'"{write.node.target}" draws integers from [{low}, {high})',
            span=source_span(write.node),
            expected="a range of at most 2^31",
            help="draw from a smaller range, or pass the numbers in as an input",
        )
    words = write.words(arguments.get("self"), arguments.get("size"))
    scaled = write(aten.bitwise_right_shift.Tensor_Scalar, write(aten.mul.Tensor, words, high - low), 32)
    return write.cast(write(aten.add.Tensor, scaled, low), write.dtype)


def _randperm(write: _Writer, arguments: Arguments) -> Result:
    """The sorting order of n random words; equal words stay in order."""
    order = write(aten.argsort.stable, write.words(size=[arguments["n"]]), stable=True, dim=0, descending=False)
    return write.cast(order, write.dtype)


def _bernoulli(write: _Writer, arguments: Arguments) -> Result:
    x, p = arguments["self"], arguments.get("p")
    if isinstance(p, (int, float)):
        return write.with_zero_gradients(write.cast(write.keep(p, x), write.dtype), x)
    p = x if p is None else p
    dtype = torch.promote_types(p.meta["val"].dtype, torch.float32)
    drawn = write.cast(write(aten.lt.Tensor, write.uniform(dtype, x), p), write.dtype)
    return write.with_zero_gradients(drawn, x, p)


def _uniform(write: _Writer, arguments: Arguments) -> Result:
    low, high = arguments["from"], arguments["to"]
    return write(
        aten.add.Tensor, write(aten.mul.Tensor, write.uniform(write.dtype, arguments["self"]), high - low), low
    )


def _normal(write: _Writer, arguments: Arguments) -> Result:
    mean, std = arguments["mean"], arguments["std"]
    shaped = [tensor for tensor in (arguments.get("self"), mean, std) if isinstance(tensor, fx.Node)]
    shape = write.node.meta["val"].shape
    like = next((tensor for tensor in shaped if tensor.meta["val"].shape == shape), None)
    noise = write.normal(write.dtype, like, None if like is not None else arguments.get("size", shape))
    drawn = write(aten.add.Tensor, write(aten.mul.Tensor, noise, write.detached(std)), write.detached(mean))
    return write.with_zero_gradients(drawn, mean, std)


def _exponential(write: _Writer, arguments: Arguments) -> Result:
    """-ln(u) / lambda, u in (0, 1]; above 0, as in torch, because models divide by it."""
    wide = torch.promote_types(write.dtype, torch.float32)
    word = write(aten.add.Tensor, write.words(arguments["self"]), 1)
    u = write(aten.mul.Tensor, write.cast(word, wide), 1 / _WORDS)
    log = write(aten.clamp.default, write(aten.log.default, u), None, -_LEAST_EXPONENTIAL)
    return write.cast(write(aten.mul.Tensor, log, -1 / arguments["lambd"]), write.dtype)


_RULES: dict[str, Callable[[_Writer, Arguments], Result]] = {
    **dict.fromkeys(("dropout", "dropout_"), _dropout),
    "native_dropout": _native_dropout,
    **dict.fromkeys(("feature_dropout", "feature_dropout_"), _feature_dropout),
    **dict.fromkeys(("alpha_dropout", "alpha_dropout_"), _alpha_dropout),
    **dict.fromkeys(("feature_alpha_dropout", "feature_alpha_dropout_"), _feature_alpha_dropout),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("rand", "rand_like"), _rand),
    **dict.fromkeys(("randn", "randn_like"), _randn),
    **dict.fromkeys(("randint", "randint_like"), _randint),
    "randperm": _randperm,
    **dict.fromkeys(("bernoulli", "bernoulli_"), _bernoulli),
    "uniform_": _uniform,
    **dict.fromkeys(("normal", "normal_"), _normal),
    "exponential_": _exponential,
}
"""By op name without overload, the function that writes the replacement; it returns None if the op is not random."""
