"""Which random numbers the forwards of a compiled model draw: those of torch's seed, and of a step that counts them.

The seed is torch's own (`torch.manual_seed`, `torch.initial_seed`). The step begins at 0, grows by one with each
forward that draws, whatever the shapes and whether it is differentiated, and begins anew when torch is given another
seed. Torch does not tell when it is given the same seed again: then the step goes on.
"""

from __future__ import annotations

import torch

from ...diagnostics import StrettoError
from ...runtime.philox import RngState
from ...runtime.processes.session import ProcessRank
from ...runtime.processes.world import World
from ...runtime.session import Session


class Draws:
    """The random state of one compiled model."""

    def __init__(self) -> None:
        self._state: RngState | None = None
        self._seen = 0
        """Torch's seed when the state was last set or used."""
        self._count = 0
        """Forwards that drew; all processes count the same."""

    @property
    def state(self) -> RngState:
        """What the next forward that draws will draw from."""
        if self._state is None or torch.initial_seed() != self._seen:
            return RngState(torch.initial_seed())
        return self._state

    @state.setter
    def state(self, state: RngState) -> None:
        self._state, self._seen = state, torch.initial_seed()

    def advance(self, session: Session) -> None:
        """Give the session the state for a forward. Raises StrettoError E0609 where processes have different ones."""
        state = self.state
        if isinstance(session, ProcessRank) and _is_compared(self._count, session.world):
            _check_same(state, session.world)
        self._count += 1
        session.rng_state = state
        self.state = RngState(state.seed, state.step + 1)


def _is_compared(count: int, world: World) -> bool:
    """On the CPU at every forward; where that would make the host wait for its device, ever more rarely."""
    return world.device.type == "cpu" or count & (count - 1) == 0


def _check_same(state: RngState, world: World) -> None:
    own = b"".join(number.to_bytes(8, "little") for number in (state.seed % (1 << 64), state.step % (1 << 64)))
    each = world.all_gather_bytes(own)
    differing = [str(rank) for rank, other in enumerate(each) if other != each[0]]
    if differing:
        raise StrettoError(
            "E0609",
            f"the processes draw different random numbers: rank {', '.join(differing)} has another seed or step than "
            f"rank 0 (here seed {state.seed}, step {state.step})",
            expected="one seed in all processes: each of them makes its part of the same masks",
            help="call torch.manual_seed with the same number in every process, not with one that holds the rank",
        )
