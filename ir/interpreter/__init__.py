"""The reference interpreter: what a module means, run with torch on one machine, all ranks in one process.

Lives here: decoding a module to steps (`code.py`), the formulas of nn operations (`nn.py`), collectives and messages
matched for real (`exchange.py`, `transfers.py`), cutting inputs and joining results (`cutting.py`), who runs what
(`ranks.py`), running (`running.py`, the place to start reading). Not here: comparing two modules (`equivalence/`), and
anything of `runtime/`; each checks the other, so they share nothing.
"""

from .errors import DeadlockError, InterpreterError, Stuck
from .memory import Estimate
from .padding import Padding
from .precision import Floats
from .running import estimate, run, run_ranks

__all__ = [
    "DeadlockError",
    "Estimate",
    "Floats",
    "InterpreterError",
    "Padding",
    "Stuck",
    "estimate",
    "run",
    "run_ranks",
]
