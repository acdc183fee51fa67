"""Pipeline schedules as data: values, generators, search, simulator and prover. Nothing here knows a model.

Start reading at `schedule.py`. `catalogue.py` lists the named schedules, `generators/` makes them, `simulate.py`
computes when each task runs, `prove.py` refuses a schedule that cannot run. `dsl/` parses written schedules.
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
