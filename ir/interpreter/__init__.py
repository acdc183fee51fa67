"""The reference interpreter: run a module with torch, all ranks in one process.

Start reading at `running.py`. `code.py` decodes a module to steps, `machine.py` runs one rank, `evaluate.py` one
operation, `nn.py` has the formulas of nn operations, `exchange.py` and `transfers.py` match collectives and messages,
`cutting.py` shards inputs and joins results. The interpreter shares nothing with `runtime/`: each checks the other.
"""

from .errors import DeadlockError, InterpreterError, RowsAboveBoundError, Stuck
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
    "RowsAboveBoundError",
    "Stuck",
    "estimate",
    "run",
    "run_ranks",
]
