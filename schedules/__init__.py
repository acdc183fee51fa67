"""Pipeline schedules as data: their values, generators, a search, a simulator and a prover. Nothing here knows a model.

Start reading at `schedule.py`; `catalogue.py` lists what can be generated (`generators/`), `simulate.py` says when each
task runs, `prove.py` refuses what cannot run. The text of a written schedule is read in `dsl/`.
"""

from .catalogue import CATALOGUE, Entry, generate, names
from .costs import Costs
from .error import ScheduleCode, ScheduleError
from .figures import Figures, Measure, figures, peaks
from .prove import prove
from .request import Request
from .schedule import Kind, Schedule, Task, loop_placement, v_placement
from .simulate import Timeline, simulate

__all__ = [
    "CATALOGUE",
    "Costs",
    "Entry",
    "Figures",
    "Kind",
    "Measure",
    "Request",
    "Schedule",
    "ScheduleCode",
    "ScheduleError",
    "Task",
    "Timeline",
    "figures",
    "generate",
    "loop_placement",
    "names",
    "peaks",
    "prove",
    "simulate",
    "v_placement",
]
