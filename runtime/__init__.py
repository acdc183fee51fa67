"""Programs and what runs them: the format, the executor, the communicators. Needs torch and numpy only.

Not here: what compiles programs (`passes`, `backends`); nothing here may import a compiler. Start reading at
`program/program.py`, then `rank/executor.py` (one rank), `threads/session.py` (all ranks, as threads),
`processes/session.py` (this process's rank), `checks/program_check.py` (are the results right?), `prover/` (is it free
of deadlocks and races?). `session.py` is the interface to callers, `communicator.py` the interface to other ranks.
Each export is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..diagnostics.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .checks.program_check import check
    from .checks.report import CheckReport, CheckRow, Verdict
    from .communicator import Communicator, Handle
    from .errors import CollectiveError, PeerFailed, ProgramError, RunError
    from .program.mesh import RankMesh
    from .program.program import Manifest, Program
    from .rank.executor import Executor, Frame
    from .session import Session, State
    from .threads.communicator import RankGroup
    from .threads.session import RankThreads, Replicas

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

_HOMES = {
    "CheckReport": ".checks.report",
    "CheckRow": ".checks.report",
    "CollectiveError": ".errors",
    "Communicator": ".communicator",
    "Executor": ".rank.executor",
    "Frame": ".rank.executor",
    "Handle": ".communicator",
    "Manifest": ".program.program",
    "PeerFailed": ".errors",
    "Program": ".program.program",
    "ProgramError": ".errors",
    "RankGroup": ".threads.communicator",
    "RankMesh": ".program.mesh",
    "RankThreads": ".threads.session",
    "Replicas": ".threads.session",
    "RunError": ".errors",
    "Session": ".session",
    "State": ".session",
    "Verdict": ".checks.report",
    "check": ".checks.program_check",
}
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
