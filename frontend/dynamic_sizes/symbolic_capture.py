"""Capture a call once for many sizes: one symbolic trace, and a graph per size by substitution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..capture.call import BoundCall
from ..capture.capture import ForwardOfCall, finish_capture, traced_model
from ..capture.distinct_layers import traced_whole
from ..capture.joint import SymbolicGraphs, trace_forward_symbolically, trace_joint
from ..capture.traced import MODEL_ATTRIBUTE, TracedModel
from ..captured import Capture, CaptureError, Mode
from ..metadata import annotate
from ..trace_errors import RAISED_BY_USER_CODE, quiet_torch, user_errors
from .dynamic_dims import CalledSize
from .graphs_at import drop_whole_slices, graphs_at
from .size_guards import NotSymbolic, SizeGuards, size_guards


@dataclass(frozen=True)
class SymbolicCapture:
    """The capture of a call with named sizes."""

    guards: SizeGuards
    """The sizes for which it is valid."""
    _model: nn.Module
    _call: BoundCall
    _sizes: Mapping[str, CalledSize]
    _module: TracedModel
    _graphs: SymbolicGraphs

    def at(self, values: Mapping[str, int]) -> Capture:
        """The capture at sizes for which the guards hold, as from `capture_call`. Raises NotSymbolic."""
        with quiet_torch(), user_errors(self._model):
            graphs = graphs_at(self._graphs, self._sizes, values)
            annotate(graphs.joint.graph, MODEL_ATTRIBUTE)
            why = "with named sizes no equal layers are searched for"
            graphs = replace(graphs, traced_whole=traced_whole(graphs.forward, why))
            return finish_capture(self._model, self._call, self._module, graphs)


@dataclass(frozen=True)
class SymbolicForward(ForwardOfCall):
    """A symbolic capture half made, of a call with named sizes."""

    sizes: Mapping[str, CalledSize]

    def finished(self) -> SymbolicCapture:
        """The capture, with the backward; called once. Raises NotSymbolic if that is not possible."""
        with quiet_torch(), _not_symbolic():
            graphs = trace_joint(self.module, self.traced, self.module.mode)
        env = self.traced.env
        assert env is not None, "torch has an environment for symbols"
        symbolic = SymbolicGraphs(graphs, self.traced.fakes, env)
        for graph in (graphs.forward, graphs.joint):
            drop_whole_slices(graph)
        guards = size_guards(symbolic, self.sizes)
        return SymbolicCapture(guards, self.model, self.call, self.sizes, self.module, symbolic)


def forward_symbolically(
    model: nn.Module,
    call: BoundCall,
    sizes: Mapping[str, CalledSize],
    *,
    mode: Mode,
    compute: torch.dtype | None = None,
    loss_only: bool = False,
) -> SymbolicForward:
    """Trace a call symbolically in its named sizes. Raises NotSymbolic if that is not possible."""
    marked = {place for size in sizes.values() for place in size.places}
    with quiet_torch(), _not_symbolic():
        module = traced_model(model, call, mode=mode, loss_only=loss_only, compute=compute)
        traced = trace_forward_symbolically(module, call.tensors, mode, marked)
    return SymbolicForward(model, call, module, traced, sizes)


@contextmanager
def _not_symbolic() -> Iterator[None]:
    """Inside, what torch raises for symbols becomes NotSymbolic."""
    try:
        yield
    except (CaptureError, *RAISED_BY_USER_CODE) as error:
        raise NotSymbolic(f"torch does not trace the model with symbols: {' '.join(str(error).split()):.200}") from None
