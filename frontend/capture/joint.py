"""Trace a module with torch: `torch.export`, then AOTAutograd's joint graph of forward and backward.

Only this module in `frontend/` calls torch's private tracing interfaces.

The steps: non-strict export gives the forward before autograd (`aten.linear`, in-place ops, views); regions of
`torch.no_grad` and autocast become detaches and casts; AOTAutograd turns the graph into the functional graph of forward
and backward, in which each node keeps its module stack and the user's stack trace.
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
from torch.utils._traceback import CapturedTraceback

from ..captured import Mode
from ..custom_functions.extraction import extract_custom_functions
from ..graph.autocast import note_callers_region, switched_off
from ..graph.checks import refuse_sparse_values, refuse_unknown_operators
from ..graph.expand_random_ops import expand_random_ops
from ..graph.grouped_products import write_grouped_products
from ..graph.regions import drop_assertions, regions_in_line, write_out_regions
from ..graph.replaced_buffers import read_old_values
from ..graph.row_major_operands import make_determinants_row_major
from ..metadata import is_users_file, source_line
from ..trace_errors import RAISED_BY_USER_CODE, missing_derivatives_named
from . import traced
from .decompositions import decompositions, has_symbols


@dataclass(frozen=True)
class TracedForward:
    """The forward before autograd: what the joint graph is made of, and what a program depends on of the model."""

    graph: fx.GraphModule
    """Parameters, buffers and constants are `get_attr` nodes or attributes by their full names."""
    constants: dict[str, torch.Tensor]
    """Its tensors that are neither parameters nor buffers, by full name."""
    value_reads: frozenset[str]
    """See `TracedGraphs.value_reads`."""
    inputs: tuple[torch.Tensor, ...]
    """What the joint graph is traced with."""
    fakes: list[torch.Tensor]
    """The fake tensors of its placeholders; with symbolic shapes where sizes were marked."""

    @property
    def env(self) -> ShapeEnv | None:
        """Torch's knowledge of the symbols, guards and ranges; None for a trace without symbols."""
        envs = {fake.fake_mode.shape_env for fake in self.fakes if isinstance(fake, FakeTensor)}
        return next(iter(envs), None)


@dataclass(frozen=True)
class TracedGraphs:
    """The graphs of a trace: `forward` before autograd, and the functional `joint` graph with the backward."""

    forward: fx.GraphModule
    """Parameters, buffers and constants are `get_attr` nodes or attributes by their full names."""
    joint: fx.GraphModule
    """Placeholders and the output node have their descriptors in `meta["desc"]`."""
    constants: dict[str, torch.Tensor]
    """Tensors of the forward that are neither parameters nor buffers, by full name."""
    value_reads: frozenset[str] = frozenset()
    """Lines ("file:line") at which the forward reads a tensor's value into Python and passes it to an op."""
    traced_whole: str = ""
    """See `Capture.traced_whole`."""


@dataclass(frozen=True)
class SymbolicGraphs:
    """The graphs of a trace with symbolic sizes."""

    graphs: TracedGraphs
    inputs: list[torch.Tensor]
    """Fake tensors with symbolic shapes."""
    env: ShapeEnv
    """Torch's knowledge of the symbols: guards and ranges."""


def trace_forward(module: nn.Module, tensors: Sequence[torch.Tensor], mode: Mode) -> TracedForward:
    """Trace the forward of `module` called with `tensors`; no kernel runs and no parameter is copied."""
    return _forward(module, _unaliased(module, tensors, mode), mode, None)


def trace_forward_symbolically(
    module: nn.Module, tensors: Sequence[torch.Tensor], mode: Mode, marked: Collection[tuple[int, int]]
) -> TracedForward:
    """`trace_forward` with symbols for the dims `marked`, pairs of (input, dim).

    Raises torch's errors if it cannot: kinds of RuntimeError, ValueError, TypeError.
    """
    dims = tuple(
        {dim: torch.export.Dim.AUTO for dim in range(tensor.dim()) if (index, dim) in marked}
        for index, tensor in enumerate(tensors)
    )
    with _real_memory_for_fakes(module):
        inputs = tuple(_unwritten_tensor(tensor, tensor.requires_grad and mode is Mode.TRAIN) for tensor in tensors)
        return _forward(module, inputs, mode, (dims,))


@contextlib.contextmanager
def _kernels_for_all(module: nn.Module) -> Iterator[None]:
    """Inside, torch picks no kernels that a CPU may lack for other floats than float32, such as oneDNN's LSTM."""
    floats = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    enabled = torch._C._get_mkldnn_enabled()
    compute = getattr(module, "compute", None)
    if floats | {compute or torch.float32} != {torch.float32} or torch.is_autocast_enabled("cpu"):
        torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


@contextlib.contextmanager
def _real_memory_for_fakes(module: nn.Module) -> Iterator[None]:
    """Inside, fake parameters and buffers are replaced by real ones, as torch makes no symbols beside fake tensors."""
    tensor_dicts: list[dict[str, Any]] = [
        tensor for submodule in module.modules() for tensor in (submodule._parameters, submodule._buffers)
    ]
    fakes = [
        (names, name, tensor)
        for names in tensor_dicts
        for name, tensor in names.items()
        if isinstance(tensor, FakeTensor)
    ]
    substitutes = {id(tensor): _unwritten_tensor(tensor, tensor.requires_grad) for _, _, tensor in fakes}
    for names, name, tensor in fakes:
        substitute = substitutes[id(tensor)]
        names[name] = nn.Parameter(substitute, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else substitute
    try:
        yield
    finally:
        for names, name, tensor in fakes:
            names[name] = tensor


def _unwritten_tensor(tensor: torch.Tensor, requires_grad: bool) -> torch.Tensor:
    """A tensor of the same shape and dtype, whose memory is not committed as long as it is not written."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=requires_grad)


def _forward(module: nn.Module, inputs: tuple[torch.Tensor, ...], mode: Mode, dims: Any) -> TracedForward:
    with _tracing(module, mode), decompositions(symbols=dims is not None):
        with _without_partial_graph(), regions_in_line():
            exported = torch.export.export(module, inputs, strict=False, dynamic_shapes=dims)
        forward = exported.module(check_guards=False)
        assert isinstance(forward, fx.GraphModule)
        constants = _hold_constants(forward, exported.constants)
        write_out_regions(forward)
        read_old_values(forward.graph, module.replaced_buffers if isinstance(module, traced.TracedModel) else ())
        value_reads = _value_reads(forward.graph)
        drop_assertions(forward.graph)
        write_grouped_products(forward.graph)
        refuse_unknown_operators(forward.graph)
        refuse_sparse_values(forward.graph)
        expand_random_ops(forward.graph)
        make_determinants_row_major(forward.graph)
        extract_custom_functions(forward)
        fakes = [node.meta["val"] for node in forward.graph.find_nodes(op="placeholder")]
        note_callers_region(forward)
    return TracedForward(forward, constants, value_reads, inputs if dims is None else tuple(fakes), fakes)


def trace_joint(module: nn.Module, traced: TracedForward, mode: Mode) -> TracedGraphs:
    """The joint graph of a forward that `module` was traced to, under the same state of torch."""
    with (
        _tracing(module, mode),
        decompositions(symbols=has_symbols(traced.inputs)),
        contextlib.ExitStack() as stack,
        switched_off(),
        missing_derivatives_named(traced.graph.graph),
    ):
        joint = aot_export_joint_with_descriptors(
            stack,
            traced.graph,
            traced.inputs,
            {},
            _record_nn_module_stack=True,
            _disable_torch_fn_metadata_mode=True,
        )
    return TracedGraphs(traced.graph, joint.graph_module, traced.constants, traced.value_reads)


@contextlib.contextmanager
def _tracing(module: nn.Module, mode: Mode) -> Iterator[None]:
    with (
        _torch_warnings_ignored(),
        _users_frames(),
        _use_lazy_graph_module(True),
        _code_when_called(),
        torch.set_grad_enabled(mode is Mode.TRAIN),
        _kernels_for_all(module),
    ):
        yield


def fake_mode_of(module: nn.Module) -> FakeTensorMode | None:
    """The fake tensor mode of the module's parameters and buffers; None if they are real."""
    for tensor in (*module.parameters(), *module.buffers()):
        if isinstance(tensor, FakeTensor):
            mode: FakeTensorMode = tensor.fake_mode
            return mode
    return None


def _unaliased(module: nn.Module, tensors: Sequence[torch.Tensor], mode: Mode) -> tuple[torch.Tensor, ...]:
    """Inputs that share no memory, as export silently merges two names of one tensor."""
    with fake_mode_of(module) or contextlib.nullcontext():
        return tuple(
            _copy(tensor, module).requires_grad_(mode is Mode.TRAIN and tensor.requires_grad) for tensor in tensors
        )


def _copy(tensor: torch.Tensor, module: nn.Module) -> torch.Tensor:
    if fake_mode_of(module) is None:
        return tensor.detach().clone()
    return torch.empty_like(tensor, device="cpu", requires_grad=False)


def _value_reads(graph: fx.Graph) -> frozenset[str]:
    items = graph.find_nodes(op="call_function", target=torch.ops.aten.item.default)
    places = (source_line(node.meta.get("stack_trace") or "") for node in items)
    return frozenset(f"{file}:{line}" for file, line in places)


def _hold_constants(forward: fx.GraphModule, constants: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Turn the forward's lifted constants into buffers, which the joint graph takes as inputs."""
    registered = {}
    buffers = dict(forward.named_buffers(remove_duplicate=False))
    for name, value in constants.items():
        if not isinstance(value, torch.Tensor) or name in buffers:
            continue
        owner_name, _, leaf = name.rpartition(".")
        owner = forward.get_submodule(owner_name)
        delattr(owner, leaf)
        owner.register_buffer(leaf, value)
        registered[name] = value
    return registered


@contextlib.contextmanager
def _users_frames() -> Iterator[None]:
    """Inside, each op records the innermost line of the user's source; torch keeps only frames named "forward"."""
    proxies: Any = fx.proxy
    original = TracerBase._filter_traceback_frames, proxies.CapturedTraceback
    tracer: Any = TracerBase
    tracer._filter_traceback_frames = lambda _tracer, summary: summary
    proxies.CapturedTraceback = _InnermostUsersFrame
    try:
        yield
    finally:
        tracer._filter_traceback_frames, proxies.CapturedTraceback = original


@contextlib.contextmanager
def _code_when_called() -> Iterator[None]:
    """Inside, graph modules generate Python code when they are first called, and graphs are not checked.

    Export makes several modules of one graph, each with code and a check of its own, and most are never called. Torch's
    lazy graph modules are a class that export does not use for all of them.
    """
    modules: Any = fx.GraphModule
    graphs: Any = fx.Graph
    recompile, lint = modules.recompile, graphs.lint

    def recompile_when_called(module: fx.GraphModule) -> None:
        def forward(self: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
            recompile(self)
            return type(self).forward(self, *args, **kwargs)

        type(module).forward = forward
        structure = getattr(module.graph._codegen, "pytree_info", None)
        if structure is not None:
            module._in_spec, module._out_spec = structure.in_spec, structure.out_spec  # as torch's does

    modules.recompile, graphs.lint = recompile_when_called, lambda _graph: None
    try:
        yield
    finally:
        modules.recompile, graphs.lint = recompile, lint


class _InnermostUsersFrame:
    """Stands for torch's captured traceback; it reads the source line of one frame, and not of the 70 around it."""

    @staticmethod
    def extract() -> _InnermostUsersFrame:
        """See torch."""
        captured: Any = CapturedTraceback
        return _InnermostUsersFrame(captured.extract().tb)

    def __init__(self, frames: Any) -> None:
        self._frames = frames

    def summary(self) -> traceback.StackSummary:
        """The frame alone; empty where no frame is of the user's source."""
        frames: list[dict[str, Any]] = torch._C._profiler.symbolize_tracebacks([self._frames])[0]  # innermost first
        for frame in frames:
            if frame["filename"] == traced.__file__:
                break
            if is_users_file(frame["filename"]):
                found = traceback.FrameSummary(frame["filename"], frame["line"], frame["name"])
                return traceback.StackSummary.from_list([found])
        return traceback.StackSummary.from_list([])


@contextlib.contextmanager
def _without_partial_graph() -> Iterator[None]:
    """Suppress the partial graph that export prints when the forward fails."""
    captured_stderr = io.StringIO()
    graph = ""
    try:
        with contextlib.redirect_stderr(captured_stderr):
            yield
    except RAISED_BY_USER_CODE as error:
        graph = f"{getattr(error, 'partial_fx_graph', '')}\n"
        raise
    finally:
        sys.stderr.write(captured_stderr.getvalue().replace(graph, "") if graph.strip() else captured_stderr.getvalue())


@contextlib.contextmanager
def _torch_warnings_ignored() -> Iterator[None]:
    """Inside, torch's deprecation warnings about its own code are ignored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
