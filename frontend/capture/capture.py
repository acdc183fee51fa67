"""Capture a model: from an `nn.Module` and one call of it to a functional graph of forward and backward."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from ..captured import Capture, CapturedOutput, CaptureError, ForwardResult, InputKind, Mode, OutputKind
from ..custom_functions.extraction import nonlinear_functions
from ..graph.checks import refuse_mixed_products, refuse_random_ops, refuse_sparse_gradients
from ..graph.complex_pairs import write_complex_as_pairs
from ..graph.strided_views import refuse_strided_views, write_as_reshapes, write_symbolic_zeros
from ..trace_errors import quiet_torch, user_errors
from .assemble import Assembled, assemble, model_names
from .call import BoundCall, bind_call
from .distinct_layers import joint_of_distinct_layers
from .function_transforms import Transforms, transforms_named
from .joint import TracedForward, TracedGraphs, trace_forward
from .own_gradients import refuse_backward_hooks
from .precision import move_casts_to_users
from .reference_graph import reference_graph
from .traced import MODEL_ATTRIBUTE, TracedModel


def capture(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    mode: Mode,
    loss_only: bool = False,
    compute: torch.dtype | None = None,
) -> Capture:
    """The graph of `model(*args, **kwargs)` in the model's present state (mode, trainable parameters).

    Values of arguments are not read, no kernel runs and no weight is copied, so that a model of fake tensors is
    captured at full size. With `loss_only` the result is only the scalar loss. With `compute` the forward runs on casts
    of the floating parameters and inputs to that dtype. Errors: CaptureError (E0210 to E0229), at the user's file and
    line.
    """
    return capture_call(model, bind_call(model, args, kwargs), mode=mode, loss_only=loss_only, compute=compute)


def capture_call(
    model: nn.Module, call: BoundCall, *, mode: Mode, loss_only: bool = False, compute: torch.dtype | None = None
) -> Capture:
    """`capture` for a bound call."""
    return capture_forward(model, call, mode=mode, loss_only=loss_only, compute=compute).finished()


@dataclass(frozen=True)
class ForwardOfCall:
    """The forward of a call, before autograd."""

    model: nn.Module
    call: BoundCall
    module: TracedModel
    traced: TracedForward

    @property
    def result(self) -> ForwardResult:
        """What the call returns around its tensors."""
        return self.module.forward_result

    @property
    def constants(self) -> dict[str, torch.Tensor]:
        """Values of the graph's own constants, by name."""
        return named_constants(self.traced)


@dataclass(frozen=True)
class CapturedForward(ForwardOfCall):
    """A capture half made."""

    transforms: Transforms

    def finished(self) -> Capture:
        """The capture, with the backward. It changes the traced forward, so that it is called once."""
        with quiet_torch(), transforms_named(self.transforms), user_errors(self.model):
            graphs = joint_of_distinct_layers(self.module, self.traced, self.module.mode)
            return finish_capture(self.model, self.call, self.module, graphs)


def named_constants(traced: TracedForward) -> dict[str, torch.Tensor]:
    """The constants of a traced forward; they keep the model's name if they have one."""
    return {name.removeprefix(f"{MODEL_ATTRIBUTE}."): value for name, value in traced.constants.items()}


def capture_forward(
    model: nn.Module, call: BoundCall, *, mode: Mode, loss_only: bool = False, compute: torch.dtype | None = None
) -> CapturedForward:
    """The first half of `capture_call`."""
    transforms: Transforms = {}
    with quiet_torch(), transforms_named(transforms), user_errors(model):
        module = traced_model(model, call, mode=mode, loss_only=loss_only, compute=compute)
        traced = trace_forward(module, call.tensors, mode)
        refuse_no_gradient(module)
        return CapturedForward(model, call, module, traced, transforms)


def traced_model(
    model: nn.Module, call: BoundCall, *, mode: Mode, loss_only: bool = False, compute: torch.dtype | None = None
) -> TracedModel:
    """The module to trace in place of the model. Raises CaptureError for gradients that cannot be captured."""
    if mode is Mode.TRAIN:
        refuse_backward_hooks(model)
        _refuse_ambiguous_gradients(model, call)
    return TracedModel(model, call, mode, loss_only=loss_only, compute=compute)


def refuse_no_gradient(module: TracedModel) -> None:
    """Raise CaptureError E0215 where training is captured and no output has a gradient."""
    if module.mode is Mode.TRAIN and not module.result.differentiable:
        raise CaptureError(
            "E0215",
            "no output of the forward depends on a trainable parameter",
            help="return the loss without .detach() or .item(), or capture for inference",
        )


def finish_capture(model: nn.Module, call: BoundCall, module: TracedModel, graphs: TracedGraphs) -> Capture:
    """Turn the traced graphs of a call, which are changed, into its capture; nodes have their origins."""
    refuse_no_gradient(module)
    captured = _assembled(model, call, module, graphs)
    warn_of_effects(module, graphs.value_reads)
    return captured


def warn_of_effects(module: TracedModel, value_reads: Collection[str]) -> None:
    """Warn about side effects that a compiled model does not have; at `value_reads` the program has the value."""
    for place in value_reads:
        module.result.effects.value_reads.pop(place, None)
    module.result.effects.warn()


def _assembled(model: nn.Module, call: BoundCall, module: TracedModel, graphs: TracedGraphs) -> Capture:
    prefix = MODEL_ATTRIBUTE + "."
    names = model_names(model, call.names, module.result.names, list(graphs.constants), prefix, module.held_names)
    if module.mode is Mode.TRAIN:
        inputs = zip(call.names, call.differentiable, strict=True)
        names = replace(names, differentiable=frozenset(name for name, wants in inputs if wants))
    refuse_strided_views(graphs.forward.graph)
    write_complex_as_pairs(graphs.joint.graph)
    write_as_reshapes(graphs.joint.graph)
    write_symbolic_zeros(graphs.joint.graph)
    assembled = assemble(graphs.joint, model, names)
    if module.compute is not None:
        move_casts_to_users(graphs.joint.graph, assembled.inputs)
    _check_gradients(assembled, module.mode)
    refuse_random_ops(graphs.joint.graph)
    refuse_mixed_products(graphs.joint.graph)
    refuse_sparse_gradients(graphs.joint.graph)
    outputs = _named_outputs(assembled.outputs, module.result.names)
    reference = reference_graph(graphs.forward, names, assembled.inputs, outputs)
    _strip(graphs.joint.graph)
    return Capture(
        graph=graphs.joint,
        mode=module.mode,
        inputs=tuple(assembled.inputs),
        outputs=outputs,
        constants={names.constants[name]: value for name, value in graphs.constants.items()},
        reference=reference,
        result=module.forward_result,
        unused_parameters=assembled.unused_parameters,
        differentiable=module.result.differentiable,
        nonlinear=nonlinear_functions(graphs.forward),
        held=call.buffers,
        traced_whole=graphs.traced_whole,
    )


def _refuse_ambiguous_gradients(model: nn.Module, call: BoundCall) -> None:
    """Gradients are identified by name, so an input that requires one may not have a parameter's name."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, wants in zip(call.names, call.differentiable, strict=True):
        if wants and name in parameters:
            raise CaptureError(
                "E0212",
                f'input "{name}" requires a gradient and has the name of a parameter',
                help=f'rename the argument of forward, or pass "{name}.detach()"',
            )


def _check_gradients(assembled: Assembled, mode: Mode) -> None:
    """Check that no required gradient is missing, as torch can lose a backward silently."""
    trainable = {tensor.name for tensor in assembled.inputs if tensor.requires_grad}
    with_gradient = {output.name for output in assembled.outputs if output.kind is OutputKind.GRADIENT}
    if mode is Mode.TRAIN and trainable != with_gradient | set(assembled.unused_parameters):
        lost = sorted(trainable - with_gradient - set(assembled.unused_parameters))
        raise CaptureError(
            "E0227",
            f"torch's trace of the forward loses the gradients of {', '.join(lost)}",
            expected="ops whose gradients torch derives",
            help="look for an autograd function of a library in the forward, and write it with plain tensor ops",
        )
    if mode is Mode.TRAIN and not any(tensor.kind is InputKind.TANGENT for tensor in assembled.inputs):
        raise AssertionError("the joint graph has no tangent")


def _named_outputs(outputs: Sequence[CapturedOutput], names: Sequence[str]) -> tuple[CapturedOutput, ...]:
    return tuple(
        replace(output, name=names[output.index]) if output.kind is OutputKind.OUTPUT else output for output in outputs
    )


def _strip(graph: fx.Graph) -> None:
    """Drop metadata that later stages do not read; a large model's stack traces take more memory than its graph."""
    keys = ("val", "stretto")
    for node in graph.nodes:
        node.meta = {key: node.meta[key] for key in keys if key in node.meta}
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.requires_grad:
            node.meta["val"] = value.detach()
