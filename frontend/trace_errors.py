"""Turn errors of torch during tracing into CaptureErrors at the user's line."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, PendingUnbackedSymbolNotFound

from ..diagnostics import Span
from .captured import CaptureError
from .metadata import forward_span, is_users_file, line_span, source_line, source_span

RAISED_BY_USER_CODE = (
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    SyntaxError,
    OSError,
)
"""Exceptions of the user's code that become errors of Stretto; interrupts and MemoryError propagate."""


_DATA_DEPENDENT = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
    PendingUnbackedSymbolNotFound,
    UnsupportedOperatorException,
)
"""Exceptions that are always the forward's fault, even without a user's line."""
_SETTER, _WITHOUT_LOOP = "set_experts_implementation", ("grouped_mm", "batched_mm")
"""How Hugging Face's models are told to compute experts, and the ways without a loop over them."""
_UNTRACKED = "a fake tensor in the exported program constant's list"
"""Torch's message for a tensor that is created during the trace but not recorded by it."""

_SHARED = "aot_autograd() does not yet handle non-differentiable view input mutations"
"""Torch's message for a change of a tensor that shares memory with another."""


_CALLED = re.compile(r"torch\.[\w.]+(?=\()")
_WITHOUT_DERIVATIVE = re.compile(r"derivative for (?P<op>\w+::\w+) is not implemented")
"""Torch's message for an op that it cannot differentiate."""
_OVERWRITTEN = re.compile(r"modified by an inplace operation:(.* which is output \d+ of (?P<op>\w+))?")
"""Torch's message for an op that changes what a backward needs: the result of an op, or a tensor of the model."""


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Inside, torch's log records are dropped; what they report becomes an error of ours."""

    def drop(record: logging.LogRecord) -> bool:
        return False

    loggers = [logger for name, logger in logging.root.manager.loggerDict.items() if name.split(".")[0] == "torch"]
    handlers = {handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers}
    for handler in handlers:
        handler.addFilter(drop)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(drop)


@contextmanager
def missing_derivatives_named(graph: fx.Graph) -> Iterator[None]:
    """Inside, a graph before autograd is differentiated.

    Errors: E0224 at the line of an op without a derivative, or of the op that changes what the backward needs.
    """
    try:
        yield
    except RuntimeError as error:
        if overwritten := _OVERWRITTEN.search(str(error)):
            raise _overwritten(graph, overwritten["op"]) from None
        found = _WITHOUT_DERIVATIVE.search(str(error))
        if found is None:
            raise
        node = next((node for node in graph.nodes if _is_named(node, found["op"])), None)
        raise CaptureError(
            "E0224",
            f'"{found["op"]}" has no derivative in torch, and a gradient is asked of it',
            span=None if node is None else source_span(node),
            expected="ops that torch can differentiate",
            help="detach what it takes, .detach(), or write it with ops that have a derivative",
        ) from None


def _overwritten(graph: fx.Graph, op: str | None) -> CaptureError:
    """The error of an in-place op: at its line where there is one, or where it changes a tensor of the model."""
    needed = "a tensor that the backward needs" if op is None else f'what the backward of "{op}" needs'
    in_place = [n for n in graph.nodes if isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable]
    if op is None:
        in_place = [n for n in in_place if isinstance(n.args[0], fx.Node) and n.args[0].op != "call_function"][:1]
    return CaptureError(
        "E0224",
        f"an in-place op changes {needed}; torch cannot differentiate it on one device either",
        span=source_span(in_place[0]) if len(in_place) == 1 else None,
        expected="values that the backward needs to stay as they are",
        help="write the op out of place, such as y = y * 2, or change a .clone()",
    )


def _is_named(node: fx.Node, op: str) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.name == op


@contextmanager
def user_errors(model: nn.Module) -> Iterator[None]:
    """Turn exceptions from the traced forward into CaptureErrors at the user's line.

    Errors: E0220 data-dependent control flow, E0221 data-dependent shapes, E0222 an op without a meta kernel, E0224 any
    other exception of the forward. Exceptions without a line of the user's are torch's or ours, and propagate.
    """
    try:
        yield
    except CaptureError as error:
        raise _placed(model, error) from None
    except RAISED_BY_USER_CODE as error:
        span = _users_line(error)
        if _UNTRACKED in str(error):
            raise _placed(model, _untracked()) from None
        if _SHARED in str(error):
            raise _placed(model, shared_memory()) from None
        if span is None and not isinstance(error, _DATA_DEPENDENT):
            raise
        name = f"{type(model).__name__}.forward"
        explained = _explained("the forward", name, error, span or forward_span(model))
        raise _with_setting(explained, model) from None


def _with_setting(error: CaptureError, model: nn.Module) -> CaptureError:
    """The error of a shape or branch by values, with what a loop over experts that picks the rows of each needs."""
    if error.code not in ("E0220", "E0221"):
        return error
    if getattr(model, _SETTER, None) is not None:
        if getattr(getattr(model, "config", None), "_experts_implementation", None) in _WITHOUT_LOOP:
            return error
        way = f'call model.{_SETTER}("{_WITHOUT_LOOP[0]}") first'
    elif (modules := _list_of_modules(model, error.span)) is not None:
        way = (
            f"such as one over self.{modules}, compute all rows and mask the results, y = y + expert(x) * (weights * "
            "(chosen == number)).sum(-1, keepdim=True): each expert then computes the rows that chose it"
        )
    else:
        return error
    help = f"{error.help}; for a loop over experts, {way}"
    return CaptureError(error.code, error.message, span=error.span, expected=error.expected, help=help)


def _list_of_modules(model: nn.Module, span: Span | None) -> str | None:
    """The list of modules that a module has in whose forward a line stands; None: it has none."""
    for module in model.modules():
        lists = [name for name, child in module.named_children() if isinstance(child, nn.ModuleList)]
        code = getattr(type(module).forward, "__code__", None)
        if lists and span is not None and code is not None and code.co_filename == span.file:
            lines = [line for *_, line in code.co_lines() if line is not None]
            if min(lines) <= span.line <= max(lines):
                return lists[0]
    return None


def _placed(model: nn.Module, error: CaptureError) -> CaptureError:
    """The error with a span: its own, else the user's line in the traceback, else the model's forward."""
    span = error.span or _users_line(error) or forward_span(model)
    return CaptureError(
        error.code, error.message, span=span, expected=error.expected, notes=error.notes, help=error.help
    )


def error_in_backward(function: str, error: BaseException) -> CaptureError:
    """The error for an exception in the backward of a custom autograd function, at its line: E0220, E0221, .."""
    backward = f'the backward of "{function}"'
    return _explained(backward, backward, error, _users_line(error))


def _explained(part: str, name: str, error: BaseException, span: Span | None) -> CaptureError:
    """The error for an exception in a part of the model, such as "the forward", with its name."""
    if isinstance(error, (DataDependentOutputException, GuardOnDataDependentSymNode)):
        return CaptureError(
            "E0220",
            f"{part} branches on, or reads, the value of a tensor{_calls_in(span)}",
            span=span,
            expected="the same ops for every input",
            help="select results with torch.where, or branch on shapes or on plain arguments",
        )
    if isinstance(error, DynamicOutputShapeException):
        return CaptureError(
            "E0221",
            f'the shape of the result of "{error.func}" depends on the values of a tensor',
            span=span,
            help="keep the full shape and mask (torch.where, or a multiplication by a mask)",
        )
    if isinstance(error, PendingUnbackedSymbolNotFound):
        return CaptureError(
            "E0221",
            f"a shape depends on the values of a tensor{_calls_in(span)}",
            span=span,
            help="keep the full shape and mask (torch.where, or a multiplication by a mask)",
        )
    if isinstance(error, UnsupportedOperatorException):
        return _without_kernel(str(error.func), span)
    return CaptureError(
        "E0224",
        f"{name} raises {type(error).__name__}: {_first_line(error)}",
        span=span,
        help=f"{part} must run on these inputs; call the model once without Stretto",
    )


def _calls_in(span: Span | None) -> str:
    """The functions of torch that a line calls: some read values, as `torch.cov` does."""
    names = dict.fromkeys(_CALLED.findall(span.text)) if span is not None else ()
    return f", in a line that calls {', '.join(names)}" if names else ""


def _untracked() -> CaptureError:
    return CaptureError(
        "E0216",
        'forward changes a tensor through its ".data", or uses one that an earlier forward left in an attribute',
        expected="changes of buffers that autograd sees",
        help="update parameters outside of forward, and keep state in buffers",
    )


def shared_memory() -> CaptureError:
    """The error for a change of a buffer that shares memory with another tensor."""
    return CaptureError(
        "E0216",
        "forward changes a buffer that shares memory with another tensor of the model",
        expected="buffers with memory of their own",
        help="register a copy, .clone(), and change both if both should change",
    )


def _without_kernel(op: str, span: Span | None) -> CaptureError:
    return CaptureError(
        "E0222",
        f'"{op}" has no meta kernel, so the shape of its result is unknown',
        span=span,
        help=f'register one with torch.library.register_fake("{op}")',
    )


def _users_line(error: BaseException) -> Span | None:
    """The innermost line of the traceback in the model's source.

    If torch runs a recorded graph, the line is in the message ("Original traceback: ...").
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_users_file(frame.filename):
            return line_span(frame.filename, frame.lineno or 1)
    file, line = source_line(str(error))
    return line_span(file, line) if file else None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or "(no message)"
