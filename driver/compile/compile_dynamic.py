"""`stretto compile --dynamic`: a program whose named sizes are chosen when it is run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ...diagnostics import PlanWarning, StrettoError
from ...dsl.plan import Plan
from ...frontend.capture.call import bind_call
from ...frontend.capture.precision import check_parameters, compute_dtype
from ...frontend.dynamic_sizes.dynamic_dims import DynamicDims
from ...frontend.dynamic_sizes.size_guards import NotSymbolic
from ...frontend.dynamic_sizes.symbolic_capture import capture_symbolically
from ...frontend.to_ir import Floats
from ...ir.module import Module
from ...runtime.program.named_sizes import range_text
from .compile_program import Compiled, Options, Progress, compile_capture
from .dynamic_sizes import find_sizes
from .pipeline_requirements import EACH_SIZE, is_alone


def compile_dynamic(
    model: nn.Module,
    inputs: Mapping[str, Any],
    plan: Plan,
    dims: DynamicDims,
    options: Options,
    *,
    progress: Progress = lambda stage: None,
    after: Callable[[str, Module], None] | None = None,
) -> Compiled:
    """`compile_program` for all sizes of the dims; as it stands the program is for those of the inputs.

    Errors: those of `compile_program`, and StrettoError E0422 where no program holds for more than these sizes.
    """
    if is_alone(plan):
        raise _refused(EACH_SIZE)
    progress("capture")
    if options.floats is Floats.AS_CAPTURED:
        check_parameters(model, plan)
    call = bind_call(model, (), inputs)
    sizes = dims.in_call(call)
    for each in dict.fromkeys(each for named in dims.dims.values() for each in named.values()):
        if each.name not in sizes or not each.holds(sizes[each.name].size):
            raise _refused(f'"{each.name}" is not within {range_text(each.low, each.high)} in the inputs')
    try:
        symbolic = capture_symbolically(
            model, call, sizes, mode=options.mode, loss_only=options.loss_only, compute=compute_dtype(plan)
        )
        captured = symbolic.at({name: each.size for name, each in sizes.items()})
    except NotSymbolic as error:
        raise _refused(str(error)) from None
    padded = replace(options, padded_inputs=tuple(dims.dims))
    first = compile_capture(captured, model, plan, padded, progress=progress, after=after)
    sample = replace(padded, keep_weights=False)
    progress("sizes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlanWarning)
        found = find_sizes(
            sizes, symbolic.guards, first, lambda other: compile_capture(symbolic.at(other), model, plan, sample)
        )
    if found.symbolic is None:
        raise _refused(found.why_not)
    return replace(first, program=replace(first.program, symbolic=found.symbolic))


def _refused(why: str) -> StrettoError:
    return StrettoError(
        "E0422",
        f"no program holds for more sizes than those of the inputs: {why}",
        help="leave out --dynamic and compile for each size",
    )
