"""Trace a module with torch: `torch.export`, then the joint graph of its forward and backward.

This module borders torch's private interfaces; nothing else in `frontend/` calls them.

The steps: non-strict export gives the forward before autograd (`aten.linear`, in-place ops, views); regions under
`torch.no_grad` are written out, so that one flat graph remains; AOTAutograd makes of it the functional graph of forward
and backward, in which each node keeps the module stack and the user's stack trace.
"""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._functorch.aot_autograd import aot_export_joint_with_descriptors
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.proxy import TracerBase

from ..captured import Mode
from ..graph.autocast import note_callers_region, switched_off
from ..graph.checks import refuse_unknown_operators
from ..graph.expand_random_ops import expand_random_ops
from ..graph.regions import drop_assertions, inline_regions
from ..graph.row_major_operands import make_determinants_row_major
from ..metadata import is_users_file, source_line
from ..trace_errors import RAISED_BY_USER_CODE
from . import traced


@dataclass(frozen=True)
class TracedGraphs:
    """Both graphs of one trace: `forward` before autograd, `joint` functional with the backward."""

    forward: fx.GraphModule
    """Parameters, buffers and constants are `get_attr` nodes or attributes by their full names."""
    joint: fx.GraphModule
    """Placeholders and the output node say what they are in `meta["desc"]`."""
    constants: dict[str, torch.Tensor]
    """Tensors that the forward makes or holds outside of parameters and buffers, by full name."""
    read_out: frozenset[str] = frozenset()
    """Lines ("file:line") at which the forward takes the value of a tensor into Python, and gives it to an op."""


def trace(module: nn.Module, tensors: Sequence[torch.Tensor], mode: Mode) -> TracedGraphs:
    """Both graphs of `module` called with `tensors`; no kernel is run and no parameter is copied."""
    return _trace(module, _distinct(module, tensors, mode), mode, None)[0]


@dataclass(frozen=True)
class SymbolicGraphs:
    """Both graphs with symbols in place of sizes."""

    graphs: TracedGraphs
    inputs: list[torch.Tensor]
    """Fake ones, whose shapes have the symbols."""
    env: ShapeEnv
    """What torch found out of the symbols."""


def trace_symbolically(
    module: nn.Module, tensors: Sequence[torch.Tensor], mode: Mode, marked: Collection[tuple[int, int]]
) -> SymbolicGraphs:
    """`trace` with symbols for the dims `marked`, (input, dim).

    Raises what torch raises where it cannot: several kinds of RuntimeError, ValueError, TypeError.
    """
    dims = tuple(
        {dim: torch.export.Dim.AUTO for dim in range(tensor.dim()) if (at, dim) in marked}
        for at, tensor in enumerate(tensors)
    )
    with _untouched(module):
        inputs = tuple(_memory(tensor, tensor.requires_grad and mode is Mode.TRAIN) for tensor in tensors)
        graphs, fakes = _trace(module, inputs, mode, (dims,))
    [env] = {each.fake_mode.shape_env for each in fakes if isinstance(each, FakeTensor)}
    assert env is not None
    return SymbolicGraphs(graphs, fakes, env)


@contextlib.contextmanager
def _kernels_for_all(module: nn.Module) -> Iterator[None]:
    """Inside, where not all floats are float32, torch picks no kernels that a processor may lack, as oneDNN's LSTM."""
    floats = {each.dtype for each in module.parameters() if each.is_floating_point()}
    enabled = torch._C._get_mkldnn_enabled()
    compute = getattr(module, "compute", None)
    if floats | {compute or torch.float32} != {torch.float32} or torch.is_autocast_enabled("cpu"):
        torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


@contextlib.contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Inside, fake parameters and buffers have memory that nobody reads: beside fake ones torch makes no symbols."""
    held: list[dict[str, Any]] = [each for part in module.modules() for each in (part._parameters, part._buffers)]
    kept = [(names, name, each) for names in held for name, each in names.items() if isinstance(each, FakeTensor)]
    made = {id(each): _memory(each, each.requires_grad) for _, _, each in kept}
    for names, name, each in kept:
        new = made[id(each)]
        names[name] = nn.Parameter(new, each.requires_grad) if isinstance(each, nn.Parameter) else new
    try:
        yield
    finally:
        for names, name, each in kept:
            names[name] = each


def _memory(tensor: torch.Tensor, requires_grad: bool) -> torch.Tensor:
    """A tensor of the same shape and dtype, whose pages stay unused as long as nobody writes to them."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=requires_grad)


def _trace(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], mode: Mode, dims: Any
) -> tuple[TracedGraphs, list[torch.Tensor]]:
    """Both graphs, and the fake inputs that they were traced with."""
    # Lazy modules generate Python code when they are first called, which most of those made here never are.
    with (
        _quiet(),
        _users_frames(),
        _use_lazy_graph_module(True),
        torch.set_grad_enabled(mode is Mode.TRAIN),
        _kernels_for_all(module),
    ):
        with _without_partial_graph():
            exported = torch.export.export(module, inputs, strict=False, dynamic_shapes=dims)
        forward = exported.module(check_guards=False)
        assert isinstance(forward, fx.GraphModule)
        constants = _hold_constants(forward, exported.constants)
        inline_regions(forward)
        read_out = _read_out(forward.graph)
        drop_assertions(forward.graph)
        refuse_unknown_operators(forward.graph)
        expand_random_ops(forward.graph)
        make_determinants_row_major(forward.graph)
        fakes = [node.meta["val"] for node in forward.graph.find_nodes(op="placeholder")]
        note_callers_region(forward)
        with contextlib.ExitStack() as stack, switched_off():
            joint = aot_export_joint_with_descriptors(
                stack,
                forward,
                inputs if dims is None else tuple(fakes),
                {},
                _record_nn_module_stack=True,
                _disable_torch_fn_metadata_mode=True,
            )
    return TracedGraphs(forward, joint.graph_module, constants, read_out), fakes


def fake_mode_of(module: nn.Module) -> FakeTensorMode | None:
    """The mode of the module's parameters and buffers when they are fake, that is, have shapes but no values."""
    for tensor in (*module.parameters(), *module.buffers()):
        if isinstance(tensor, FakeTensor):
            mode: FakeTensorMode = tensor.fake_mode
            return mode
    return None


def _distinct(module: nn.Module, tensors: Sequence[torch.Tensor], mode: Mode) -> tuple[torch.Tensor, ...]:
    """Inputs that share no memory: export takes two names of one tensor for one input, silently."""
    with fake_mode_of(module) or contextlib.nullcontext():
        return tuple(
            _copy(tensor, module).requires_grad_(mode is Mode.TRAIN and tensor.requires_grad) for tensor in tensors
        )


def _copy(tensor: torch.Tensor, module: nn.Module) -> torch.Tensor:
    if fake_mode_of(module) is None:
        return tensor.detach().clone()
    return torch.empty_like(tensor, device="cpu", requires_grad=False)


def _read_out(graph: fx.Graph) -> frozenset[str]:
    items = graph.find_nodes(op="call_function", target=torch.ops.aten.item.default)
    places = (source_line(node.meta.get("stack_trace") or "") for node in items)
    return frozenset(f"{file}:{line}" for file, line in places)


def _hold_constants(forward: fx.GraphModule, constants: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Make the forward's lifted constants buffers: the joint graph takes buffers as inputs and chokes on the rest."""
    held = {}
    buffers = dict(forward.named_buffers(remove_duplicate=False))
    for name, value in constants.items():
        if not isinstance(value, torch.Tensor) or name in buffers:
            continue
        owner_name, _, leaf = name.rpartition(".")
        owner = forward.get_submodule(owner_name)
        delattr(owner, leaf)
        owner.register_buffer(leaf, value)
        held[name] = value
    return held


@contextlib.contextmanager
def _users_frames() -> Iterator[None]:
    """Record of each op's stack the innermost line of the model's source; torch keeps only frames named "forward"."""
    kept = TracerBase._filter_traceback_frames
    TracerBase._filter_traceback_frames = _innermost_users_frame  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        TracerBase._filter_traceback_frames = kept  # type: ignore[method-assign]


def _innermost_users_frame(_tracer: TracerBase, summary: traceback.StackSummary) -> traceback.StackSummary:
    for frame in reversed(summary):
        if frame.filename == traced.__file__:
            break
        if is_users_file(frame.filename):
            return traceback.StackSummary.from_list([frame])
    return traceback.StackSummary.from_list([])


@contextlib.contextmanager
def _without_partial_graph() -> Iterator[None]:
    """Export prints the graph that it has when the forward fails; the error that we make of it says the place."""
    held = io.StringIO()
    graph = ""
    try:
        with contextlib.redirect_stderr(held):
            yield
    except RAISED_BY_USER_CODE as error:
        graph = f"{getattr(error, 'partial_fx_graph', '')}\n"
        raise
    finally:
        sys.stderr.write(held.getvalue().replace(graph, "") if graph.strip() else held.getvalue())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch's own deprecation warnings on the way are none of the user's business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
