"""A call whose forward is traced, with symbols where sizes are named; and the captures that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

from ...diagnostics import StrettoError
from ...frontend.capture.call import BoundCall
from ...frontend.capture.capture import CapturedForward, capture_forward
from ...frontend.capture.precision import check_parameters, compute_dtype
from ...frontend.captured import Capture
from ...frontend.dynamic_sizes.size_guards import NotSymbolic
from ...frontend.dynamic_sizes.symbolic_capture import SymbolicCapture, SymbolicForward, forward_symbolically
from ...frontend.to_ir import Floats
from ...passes.pipelining.scheduled_pipeline import check_schedule
from .input_roles import capture_microbatch, check_input_names
from .pipeline_requirements import is_alone
from .request import CompileRequest, IfStatic

EACH_SIZE = "the plan's microbatches are computed alone"
"""Why there is no program for more than one size."""


@dataclass(frozen=True)
class Captures:
    """What is compiled: `own` for the sizes of the call; `symbolic` gives it for others too."""

    own: Capture
    symbolic: SymbolicCapture | None = None
    why_not: str = ""
    """Why there is none with symbols, though sizes are named."""


@dataclass(frozen=True)
class TracedCall:
    """The forward of a call."""

    forward: CapturedForward | SymbolicForward
    why_not: str = ""
    """Why it has no symbols, though sizes are named."""

    def captures(self) -> Captures:
        """The captures, with the backward. Raises NotSymbolic where the graph holds for the call's sizes alone."""
        if isinstance(self.forward, CapturedForward):
            return Captures(self.forward.finished(), why_not=self.why_not)
        symbolic = self.forward.finished()
        return Captures(symbolic.at({name: each.size for name, each in self.forward.sizes.items()}), symbolic)


def traced_call(request: CompileRequest) -> TracedCall:
    """Trace a call's forward. Errors: CaptureError, PlanError E0114 and E0123, StrettoError E0402, E0405, E0422."""
    check_input_names(request.plan, request.call)
    check_schedule(request.plan)
    _check_formats(request)
    if not request.sizes:
        return TracedCall(_own(request))
    if is_alone(request.plan):
        return static_call(request, EACH_SIZE)
    try:
        return TracedCall(_with_symbols(request))
    except NotSymbolic as error:
        why = str(error)
    return static_call(request, why)


def static_call(request: CompileRequest, why: str) -> TracedCall:
    """Trace a call for its own sizes, though some are named. Raises StrettoError E0422 where the request refuses it."""
    if request.if_static is IfStatic.REFUSE:
        raise sizes_refused(why)
    return TracedCall(_own(request), why)


def _own(request: CompileRequest) -> CapturedForward:
    """The call, or one microbatch of it where the plan has each computed alone."""

    def capture(call: BoundCall) -> CapturedForward:
        return capture_forward(
            request.model,
            call,
            mode=request.options.mode,
            loss_only=request.options.loss_only,
            compute=compute_dtype(request.plan),
        )

    return capture_microbatch(request.call, request.plan, capture)


def _with_symbols(request: CompileRequest) -> SymbolicForward:
    """Raises NotSymbolic where the graph holds for the call's sizes alone."""
    return forward_symbolically(
        request.model,
        request.call,
        request.sizes,
        mode=request.options.mode,
        loss_only=request.options.loss_only,
        compute=compute_dtype(request.plan),
    )


def _check_formats(request: CompileRequest) -> None:
    """Raise PlanError E0123 where parameters are not in the format that the plan says."""
    if request.options.floats is Floats.AS_CAPTURED:
        check_parameters(request.model, request.plan)


def sizes_refused(why: str) -> StrettoError:
    """E0422: named sizes are a must, and a program holds for those of the call alone."""
    return StrettoError(
        "E0422",
        f"no program holds for more sizes than those of the inputs: {why}",
        help="leave out --dynamic and compile for each size",
    )
