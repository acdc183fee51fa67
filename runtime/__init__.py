"""Programs and what runs them: the format, the executor, the communicators. Needs torch and numpy only.

What makes programs lives elsewhere (`passes`, `backends`); nothing here may import a compiler. Start reading at
`program.py`, then `executor.py` (one rank), `session.py` (all ranks, as threads), `check.py` (is the result right?).
"""

from .check import check
from .check_report import CheckReport, CheckRow, Verdict
from .communicator import Communicator, Handle
from .errors import CollectiveError, PeerFailed, ProgramError, RunError
from .executor import Executor, Frame
from .in_process import RankGroup
from .interface import Session, State
from .mesh import RankMesh
from .program import Manifest, Program
from .session import RankThreads, Replicas

__all__ = [
    "CheckReport",
    "CheckRow",
    "CollectiveError",
    "Communicator",
    "Executor",
    "Frame",
    "Handle",
    "Manifest",
    "PeerFailed",
    "Program",
    "ProgramError",
    "RankGroup",
    "RankMesh",
    "RankThreads",
    "Replicas",
    "RunError",
    "Session",
    "State",
    "Verdict",
    "check",
]
