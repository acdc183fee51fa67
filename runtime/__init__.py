"""Programs and what runs them: the format, the executor, the communicators. Needs torch and numpy only.

What makes programs lives elsewhere (`passes`, `backends`); nothing here may import a compiler. Start reading at
`program.py`, then `executor.py` (one rank), `in_process.py` (ranks as threads).
"""

from .communicator import Communicator, Handle
from .errors import CollectiveError, PeerFailed, ProgramError, RunError
from .executor import Executor, Frame
from .in_process import RankGroup
from .mesh import RankMesh
from .program import Manifest, Program

__all__ = [
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
    "RunError",
]
