"""All that a program depends on of a model and its call, as lines of text: the keys of the compile cache hash them.

Capture, passes and lowering see a model through its traced forward, its parameters and buffers, and torch's own state.
Each of these has its line here. What has no text that tells all of it is refused (`NotKeyed`): the backward of a custom
op is code, and so is a mode of the caller's. A test changes each fact, and expects other lines.
"""

from __future__ import annotations

import operator
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._functorch import config as functorch_config
from torch._subclasses.fake_tensor import FakeTensor

from ..ops.table import op_table
from .capture.capture import CapturedForward
from .capture.joint import TracedForward
from .capture.model_parameters import parameter_infos
from .custom_functions.custom_function import CustomFunction
from .dynamic_sizes.symbolic_capture import SymbolicForward
from .graph import autocast
from .graph.integer_values import integer_bounds
from .graph.random_op import RANDOM

_TENSORS = (Tensor, nn.Parameter, FakeTensor)
_FUNCTIONS = (operator.getitem, autocast.enter, autocast.leave)
_OPERATORS = frozenset({"_operator", "math"})
"""Modules of the functions by which a symbolic trace computes sizes."""


class NotKeyed(Exception):
    """Something that a program depends on has no text; the message says what."""


def forward_facts(forward: CapturedForward | SymbolicForward) -> Iterator[str]:
    """One line for each fact of a traced call. Raises NotKeyed."""
    yield from _torch_state()
    yield from _model_facts(forward.model)
    call, module = forward.call, forward.module
    for name, tensor in zip(call.names, call.tensors, strict=True):
        yield f"argument {name!r} {_tensor(tensor, name)}"
    if call.opaque:
        raise NotKeyed("an object among the arguments holds something that has no text, such as a function")
    for name, tensor in call.buffers.items():
        yield f"held {name!r} {_tensor(tensor, name)}"
    yield f"held integers {integer_bounds(call.buffers)!r}"
    yield f"arguments {call.structure!r}"
    yield f"mode {module.mode} {module.loss_only} {module.compute}"
    result = module.result
    yield f"result {result.names!r} {result.differentiable} {result.constant}"
    yield from _graph_facts(forward.traced)


def _torch_state() -> Iterator[str]:
    """The state of torch that tracing and passes consult, and the machine as far as torch's choice of ops asks it."""
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        raise NotKeyed("a mode of the caller's sees every op of the forward")
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        raise NotKeyed("hooks of the caller's see every tensor that is saved for the backward")
    if overridden := _ops_of_the_caller():
        raise NotKeyed(f'the op "{overridden[0]}" of torch runs code that the caller registered')
    yield f"torch {torch.__version__} {torch.version.git_version} python {sys.version}"
    yield f"machine {platform.machine()} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"
    yield f"default dtype {torch.get_default_dtype()} precision {torch.get_float32_matmul_precision()}"
    yield f"autocast {torch.is_autocast_enabled('cpu')} {torch.get_autocast_dtype('cpu')}"
    yield f"inference mode {torch.is_inference_mode_enabled()} anomalies {torch.is_anomaly_enabled()}"
    yield f"deterministic {torch.are_deterministic_algorithms_enabled()}"
    yield f"mkldnn {torch._C._has_mkldnn} {torch._C._get_mkldnn_enabled()}"
    attention = torch._C._get_flash_sdp_enabled(), torch._C._get_mem_efficient_sdp_enabled()
    yield f"attention {attention} {torch._C._get_math_sdp_enabled()}"
    yield f"functorch {functorch_config.get_hash().hex()}"


def _ops_of_the_caller() -> list[str]:
    """The ops of torch with a kernel or a gradient in Python, where torch itself has only shape functions."""
    entries = [entry.split("/") for entry in torch.library._impls if entry.startswith("aten/")]
    keys = ("Autograd", "Composite", "CPU", "Python")
    return sorted(f"{entry[0]}.{entry[1]}" for entry in entries if any(key in entry[-1] for key in keys))


def _model_facts(model: nn.Module) -> Iterator[str]:
    """Parameters and buffers: their names, what they are, and which of them share an object or memory."""
    for info in parameter_infos(model):
        yield f"parameter {info!r}"
    buffers = dict(model.named_buffers(remove_duplicate=False))
    objects: dict[int, int] = {}
    memories: dict[int, int] = {}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *buffers.items()):
        text = _tensor(tensor, name)
        number = objects.setdefault(id(tensor), len(objects))
        memory = memories.setdefault(tensor.untyped_storage()._cdata, len(memories))
        kind = "buffer" if name in buffers else "parameter"
        yield f"{kind} {name!r} is {number} in {memory} {text}"
    yield f"integers {integer_bounds(buffers)!r}"


def _graph_facts(traced: TracedForward) -> Iterator[str]:
    yield from _node_facts(traced.graph)
    for name, value in traced.constants.items():
        yield f"constant {name!r} {_tensor(value, name)} {_contents(value, name)}"
    yield f"values read at {sorted(traced.value_reads)!r}"
    env = traced.env
    if env is not None:
        yield f"guards {[str(guard.expr) for guard in env.guards]!r} {len(env.deferred_runtime_asserts)}"
        yield f"ranges {sorted((str(symbol), str(range_)) for symbol, range_ in env.var_to_range.items())!r}"
        yield f"equal {sorted((str(symbol), str(other)) for symbol, other in env.replacements.items())!r}"


def _node_facts(module: fx.GraphModule) -> Iterator[str]:
    numbers: dict[fx.Node, int] = {}
    for node in module.graph.nodes:
        numbers[node] = len(numbers)
        operands = f"{_text(node.args, numbers)} {_text(node.kwargs, numbers)}"
        modules = [(str(path), _class_name(cls)) for path, cls in (node.meta.get("nn_module_stack") or {}).values()]
        yield f"%{numbers[node]} {node.name} {node.op} {_target(node)} {operands}"
        yield f"gives {_text(node.meta.get('val'), numbers)} in {modules!r} at {node.meta.get('stack_trace')!r}"
        if node.op == "call_module":
            yield from _function_facts(module.get_submodule(str(node.target)))


def _function_facts(function: nn.Module) -> Iterator[str]:
    """Of a custom autograd function: its forward, and each of its backwards."""
    if not isinstance(function, CustomFunction):
        raise NotKeyed(f"the forward calls a module of type {type(function).__name__}")
    yield f"function {function.signature!r}"
    yield from _node_facts(function.forward_graph)
    for backward in function.backwards:
        yield f"backward {backward.present}"
        yield from _node_facts(backward.graph)
    for graph in (function.forward_graph, *(backward.graph for backward in function.backwards)):
        if graph.graph.find_nodes(op="get_attr"):  # what it reads from outside is an operand
            raise NotKeyed(f'the custom function "{function.signature.name}" holds a tensor')
    yield "end of function"


def _target(node: fx.Node) -> str:
    target = node.target
    if node.op in ("placeholder", "get_attr", "output", "call_module"):
        return str(target)
    if isinstance(target, torch._ops.OpOverload):
        return _op_name(target)
    if target in _FUNCTIONS or getattr(target, "__module__", "") in _OPERATORS:
        return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    raise NotKeyed(f'"{target}" is no op')


def _op_name(op: torch._ops.OpOverload) -> str:
    name = f"{op.namespace}.{op.__name__}"
    if op is RANDOM:
        return name
    if name not in op_table():
        raise NotKeyed(f'what the custom op "{name}" computes, and its gradient, is code of its library')
    return name if op.namespace == "aten" else f"{name} of {version(op.namespace)}"


def _text(value: Any, numbers: Mapping[fx.Node, int]) -> str:
    """An argument or a value of the graph."""
    match value:
        case fx.Node():
            return f"%{numbers[value]}"
        case float():
            return value.hex()
        case None | bool() | int() | complex() | str():
            return repr(value)
        case torch.dtype() | torch.device() | torch.layout() | torch.memory_format():
            return str(value)
        case torch.SymInt() | torch.SymFloat() | torch.SymBool():
            return f"{value.node.expr} ({value.node.hint})"
        case Tensor():
            return _tensor(value, "a value of the forward")
        case list() | tuple():
            return f"[{', '.join([_text(item, numbers) for item in value])}]"
        case dict():
            return _text([part for item in value.items() for part in item], numbers)
        case slice():
            return f"slice{_text([value.start, value.stop, value.step], numbers)}"
        case torch.autocast():
            return "a region"
    raise NotKeyed(f"the forward has a value of type {type(value).__name__}")


def _tensor(tensor: Tensor, name: str) -> str:
    """What a tensor is, without its values."""
    if type(tensor) not in _TENSORS or tensor.layout is not torch.strided:
        raise NotKeyed(f'"{name}" is a {type(tensor).__name__} of layout {tensor.layout}')
    numbers: Mapping[fx.Node, int] = {}
    layout = [_sizes(tensor.shape, numbers), _sizes(tensor.stride(), numbers), _text(tensor.storage_offset(), numbers)]
    bits = (tensor.requires_grad, tensor.is_leaf, tensor.is_conj(), tensor.is_neg(), tensor.is_inference())
    return f"{type(tensor).__name__} {tensor.dtype} {' '.join(layout)} {tensor.device} {bits}"


def _sizes(sizes: Sequence[Any], numbers: Mapping[fx.Node, int]) -> str:
    return _text(tuple(sizes), numbers)


def _contents(tensor: Tensor, name: str) -> str:
    """The values of a constant: they are those of the program."""
    if isinstance(tensor, FakeTensor) or tensor.is_meta:
        raise NotKeyed(f'the constant "{name}" has no values')
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
    return sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def _class_name(cls: Any) -> str:
    return f"{cls.__module__}.{cls.__qualname__}" if isinstance(cls, type) else str(cls)
