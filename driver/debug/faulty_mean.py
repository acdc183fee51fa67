"""The faulty operation of a module that should be the mean over microbatches of the one before (`per microbatch`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...diagnostics import StrettoError
from ...ir.equivalence import random_inputs
from ...ir.equivalence.integer_ranges import IntegerRange
from ...ir.equivalence.microbatch_mean import microbatch_inputs
from ...ir.equivalence.random_inputs import infer_ranges
from ...ir.equivalence.subvalues import Subvalues
from ...ir.equivalence.trace import Trace
from ...ir.interpreter import Floats, run
from ...ir.interpreter.code import decode
from ...ir.module import Module
from ..check.pass_check import CheckOptions
from .fault_localisation import Statuses, suspects
from .faulty_op import FaultyOp, report_on, stopped_at
from .known_values import Values
from .traced_module import TracedModule


def find_op_of_mean(
    before: Module, after: Module, options: CheckOptions, ranges: Mapping[str, IntegerRange], wrong: Sequence[int]
) -> FaultyOp | None:
    """As `find_faulty_op`; the module before runs once for each microbatch, and all its values are right."""
    inputs = random_inputs(after, options.seed, {**infer_ranges(before, after), **ranges}, regime=options.regime)
    cap, traces = options.memory_cap_bytes, list[Trace]()
    for part in microbatch_inputs(decode(before), decode(after), inputs):
        traces.append(TracedModule(before, part).trace)
        with Subvalues(traces[-1].keep_subvalue):
            run(before, part, floats=Floats.FLOAT64, max_bytes=cap, observer=traces[-1])
    known, side = Values(traces[0], options.tolerance, traces[1:]), TracedModule(after, inputs)
    side.trace.knows = known.knows
    try:
        run(after, inputs, floats=Floats.FLOAT64, max_bytes=cap, observer=side.trace)
    except StrettoError:
        if not side.is_complete:
            return stopped_at(side)
    statuses = Statuses(side.trace, known, frozenset(side.trace.flow.results[i] for i in wrong))
    why = ("no microbatch computes its value in the module before the pass",)
    return report_on(side, statuses, suspects(statuses), why, None)
