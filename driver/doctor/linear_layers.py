"""The graph of linear layers: which layer feeds which, found in the graph of a forward, independent of module names.

The *sources* of a value are the nearest linear layers behind it, through ops that keep features in place (pointwise,
views, attention). A value is a *mixture* where an op mixes features (a norm over all of them, a convolution), or where
no linear layer made it (an embedding, the residual stream). A layer that reads a mixture needs all its features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ...ir.bindings import Operation, Value
from ...ir.module import Module, Record, argument_records, entry, operations
from ...ir.operations import Call, flatten, is_packing, read, results_of
from ...ir.types import from_mlir, is_tensor

_VIEWS = ("aten.t.", "aten.transpose.", "aten.permute.", "aten.view.", "aten.reshape.", "aten._to_copy.", "aten.clone.")
_PRODUCTS = ("aten.mm.", "aten.addmm.", "aten.bmm.", "aten.matmul.", "aten.linear.")
_NORMS = ("nn.rms_norm", "nn.layer_norm", "aten.native_layer_norm.", "aten._fused_rms_norm.", "aten.rms_norm.")
_MIXING_OPS = (
    "aten.embedding.", "aten.convolution.", "aten.native_group_norm.", "aten.native_batch_norm",
    "aten._native_batch_norm_legit", "aten.cudnn_batch_norm.", "aten.mean.", "aten.sum.", "aten.var",
)  # fmt: skip
_LINEAR = frozenset({"linear", "linear_transposed", "embedding"})
"""Kinds of modules whose weight multiplies features; an embedding's weight does if it is tied to a head."""
MIXTURE = ""
"""Stands for a layer's name where the value is a mixture."""

Sources = frozenset[str]
"""Names of the weights of linear layers, with `MIXTURE` where a part does not come from layers."""


@dataclass(frozen=True)
class LinearLayer:
    """One use of a linear layer's weight."""

    weight: str
    """The parameter's first name."""
    outputs: int
    """The number of output features."""
    sources: Sources
    """The sources of its input; empty for an input of the model."""


@dataclass
class LayerGraph:
    """The linear layers of a forward in order, and the number of rows of each embedding's weight."""

    layers: list[LinearLayer] = field(default_factory=list)
    embeddings: dict[str, int] = field(default_factory=dict)


def layer_graph(module: Module) -> LayerGraph:
    """The graph of the function `main` of a forward, with idioms raised and layers not folded."""
    main = module.functions()["main"]
    walk = _Walk(argument_records(main), entry(main).arguments)
    for op in operations(main):
        walk.visit(op)
    return walk.graph


class _Walk:
    """One walk over the operations in order."""

    def __init__(self, records: Sequence[Record], arguments: Iterable[Value]) -> None:
        self.graph = LayerGraph()
        self._weights: dict[Value, Record] = {}
        self._sources: dict[Value, Sources] = {}
        self._outputs: dict[str, int] = {}
        for record, argument in zip(records, arguments, strict=True):
            if record.get("kind") == "parameter":
                self._weights[argument] = record

    def visit(self, op: Operation) -> None:
        """Record the sources of one operation's results."""
        call = None if is_packing(op) else read(op)
        if call is None:
            return
        values = call.values()
        results = flatten(results_of(op))
        weight = next((self._weights[v] for v in values if v in self._weights), None)
        if weight is not None and len(values) == 1 and call.name.startswith(_VIEWS):
            self._weights.update(dict.fromkeys(results, weight))
            return
        sources = self._sources_of(call, values, results)
        self._sources.update(dict.fromkeys(results, sources))

    def _sources_of(self, call: Call, values: Sequence[Value], results: Sequence[Value]) -> Sources:
        before = frozenset().union(*(self._sources.get(v, frozenset()) for v in values))
        layer = self._layer_of(call, values)
        if layer is not None:
            outputs = from_mlir(results[0].type).shape[-1]
            self.graph.layers.append(LinearLayer(layer, outputs, before))
            self._outputs[layer] = outputs
            return frozenset({layer})
        if call.name.startswith("aten.embedding."):
            table = next((self._weights[v] for v in values if v in self._weights), None)
            if table is not None:
                self.graph.embeddings[table["name"]] = from_mlir(values[0].type).shape[0]
        if call.name.startswith(_NORMS):
            return before if self._is_within_layers(values[0], before) else frozenset({MIXTURE})
        is_of_model = bool(before) or any(v in self._weights for v in values)
        return frozenset({MIXTURE}) if is_of_model and call.name.startswith(_MIXING_OPS) else before

    def _layer_of(self, call: Call, values: Sequence[Value]) -> str | None:
        """The weight, if the operation is a linear layer."""
        if not call.name.startswith(_PRODUCTS):
            return None
        owners = [self._weights[v] for v in values if v in self._weights]
        linear = [r for r in owners if r.get("owner") in _LINEAR and str(r["name"]).endswith("weight")]
        return str(linear[0]["name"]) if linear else None

    def _is_within_layers(self, value: Value, sources: Sources) -> bool:
        """Whether a norm is over a part of each layer's output, such as one head."""
        if not is_tensor(value.type) or not sources or MIXTURE in sources:
            return False
        extent = from_mlir(value.type).shape[-1]
        return all(extent < self._outputs[name] for name in sources)
