"""Capture a call once for many sizes: one trace with symbols, and a graph for each size by putting in its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..capture.call import BoundCall
from ..capture.capture import finish, to_trace
from ..capture.joint import SymbolicGraphs, trace_symbolically
from ..capture.traced import TracedModel
from ..captured import Capture, CaptureError, Mode
from ..trace_errors import RAISED_BY_USER_CODE, quiet_torch, user_errors
from .dynamic_dims import CalledSize
from .graphs_at import drop_whole_slices, graphs_at
from .size_guards import NotSymbolic, SizeGuards, size_guards


@dataclass(frozen=True)
class SymbolicCapture:
    """A call with named sizes, captured."""

    guards: SizeGuards
    """For which sizes."""
    _model: nn.Module
    _call: BoundCall
    _sizes: Mapping[str, CalledSize]
    _module: TracedModel
    _graphs: SymbolicGraphs

    def at(self, values: Mapping[str, int]) -> Capture:
        """What `capture_call` gives for a call of these sizes, of which the guards must hold. Raises NotSymbolic."""
        with quiet_torch(), user_errors(self._model):
            return finish(self._model, self._call, self._module, graphs_at(self._graphs, self._sizes, values))


def capture_symbolically(
    model: nn.Module,
    call: BoundCall,
    sizes: Mapping[str, CalledSize],
    *,
    mode: Mode,
    compute: torch.dtype | None = None,
    loss_only: bool = False,
) -> SymbolicCapture:
    """Capture a call for all sizes like its own. Raises NotSymbolic where it must be captured for its own alone."""
    marked = {place for each in sizes.values() for place in each.places}
    with quiet_torch():
        try:
            module = to_trace(model, call, mode=mode, loss_only=loss_only, compute=compute)
            traced = trace_symbolically(module, call.tensors, mode, marked)
        except (CaptureError, *RAISED_BY_USER_CODE) as error:
            raise NotSymbolic(
                f"torch does not trace the model with symbols: {' '.join(str(error).split()):.200}"
            ) from None
    for graph in (traced.graphs.forward, traced.graphs.joint):
        drop_whole_slices(graph)
    return SymbolicCapture(size_guards(traced, sizes), model, call, sizes, module, traced)
