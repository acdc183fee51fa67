"""The RNG state of a compiled model: torch's seed, and a step that counts the forwards that drew random numbers.

The seed is torch's own (`torch.manual_seed`, `torch.initial_seed`). The step starts at 0 and grows by one with each
forward that draws, in training and inference alike. It starts at 0 again when torch gets another seed. Torch does not
report that it got the same seed again: then the step goes on.
"""

from __future__ import annotations

import torch

from ...diagnostics import StrettoError
from ...runtime.philox import RngState
from ...runtime.processes.session import ProcessRank
from ...runtime.processes.world import World
from ...runtime.session import Session


class ModelRngState:
    """The RNG state of one compiled model, advanced by each forward that draws."""

    def __init__(self) -> None:
        self._state: RngState | None = None
        self._seen = 0
        """Torch's seed when the state was last set or used."""
        self._count = 0
        """Forwards that drew; the same in all processes."""

    @property
    def state(self) -> RngState:
        """The state that the next forward that draws will use."""
        if self._state is None or torch.initial_seed() != self._seen:
            return RngState(torch.initial_seed())
        return self._state

    @state.setter
    def state(self, state: RngState) -> None:
        self._state, self._seen = state, torch.initial_seed()

    def advance(self, session: Session) -> None:
        """Give the session the state for one forward. Raises StrettoError E0609 where processes differ in it."""
        state = self.state
        if isinstance(session, ProcessRank) and _is_compared(self._count, session.world):
            _check_same(state, session.world)
        self._count += 1
        session.rng_state = state
        self.state = RngState(state.seed, state.step + 1)


def _is_compared(count: int, world: World) -> bool:
    """Whether to compare processes at this forward: always on the CPU, at powers of two where it would block a GPU."""
    return world.device.type == "cpu" or count & (count - 1) == 0


def _check_same(state: RngState, world: World) -> None:
    own = b"".join(number.to_bytes(8, "little") for number in (state.seed % (1 << 64), state.step % (1 << 64)))
    states = world.all_gather_bytes(own)
    differing = [str(rank) for rank, other_state in enumerate(states) if other_state != states[0]]
    if differing:
        raise StrettoError(
            "E0609",
            f"the processes draw different random numbers: rank {', '.join(differing)} has another seed or step than "
            f"rank 0 (this process has seed {state.seed}, step {state.step})",
            expected="one seed in all processes, since each computes its part of the same masks",
            help="call torch.manual_seed with the same number in every process; do not add the rank to it",
        )
