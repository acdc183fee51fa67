"""The interpreter of programs: run the records of a program on all ranks in one process, in float64.

It reads the records of `runtime/program/` and shares nothing else with the runtime: no executor, no session, no random
numbers. What a rank's instruction means is written here a second time; ops, collectives and random numbers are those of
the interpreter of modules (`ir/interpreter/`), which is a reference too. So a fault of lowering or of a program shows,
and so does one of the executor when the two are compared.

Start reading at `running.py` (all ranks), then `rank.py` (one rank), `rank_ops.py`, `tensors.py` (parts of inputs and
results). Not here: lowering (`backends/program/`) and the comparison with a module (`driver/check/lowering_check.py`).
"""

from .program_records import ProgramRecords
from .running import run_program

__all__ = ["ProgramRecords", "run_program"]
