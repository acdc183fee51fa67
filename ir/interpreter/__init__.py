"""The reference interpreter: what a module means, run with torch on one machine, all ranks in one process.

Lives here: decoding a module to steps (`code.py`), the formulas of nn operations (`nn.py`), collectives and messages
matched for real (`exchange.py`, `transfers.py`), cutting inputs and joining results (`cutting.py`), who runs what
(`ranks.py`), running (`running.py`, the place to start reading), and comparing two modules (`compare.py`). Not here:
anything of `runtime/`; each checks the other, so they share nothing.
"""

from .compare import Comparison, ResultComparison, Verdict, compare
from .errors import DeadlockError, InterpreterError, Stuck
from .integer_ranges import IntegerRange
from .memory import Estimate
from .padding import Padding
from .precision import Floats
from .random_inputs import infer_ranges, integer_arguments, random_inputs
from .running import estimate, run, run_ranks

__all__ = [
    "Comparison",
    "DeadlockError",
    "Estimate",
    "Floats",
    "IntegerRange",
    "InterpreterError",
    "Padding",
    "ResultComparison",
    "Stuck",
    "Verdict",
    "compare",
    "estimate",
    "infer_ranges",
    "integer_arguments",
    "random_inputs",
    "run",
    "run_ranks",
]
