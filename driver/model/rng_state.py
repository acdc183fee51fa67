"""The RNG state of a compiled model: torch's seed, and a step that counts the forwards that drew random numbers.

The seed is torch's own (`torch.manual_seed`, `torch.initial_seed`). The step starts at 0 and grows by one with each
forward that draws, in training and inference alike. It starts at 0 again when torch gets a seed, be it the same one.
Torch does not report that, so each forward that draws takes one number of torch's generator, as eager mode takes some:
a generator that is as its seed makes it was seeded since.
"""

from __future__ import annotations

import torch

from ...diagnostics import StrettoError
from ...runtime.philox import RngState
from ...runtime.processes.session import ProcessRank
from ...runtime.processes.world import World
from ...runtime.session import Session


class _Seedings:
    """Counts how often torch's generator got a seed, as far as forwards that draw can tell. One for all models."""

    def __init__(self) -> None:
        self._count = 0
        self._is_noted = False
        """Whether the generator, as it is, was counted before."""
        self._fresh: tuple[int, torch.Tensor] = (-1, torch.empty(0))

    def last(self) -> tuple[int, int]:
        """The seed, and a number that is another one after each seeding."""
        seed = torch.initial_seed()
        if self._fresh[0] != seed:
            self._fresh = seed, torch.Generator().manual_seed(seed).get_state()
        is_fresh = torch.equal(torch.get_rng_state(), self._fresh[1])
        self._count += is_fresh and not self._is_noted
        self._is_noted = is_fresh
        return seed, self._count

    def draw(self) -> None:
        """Take one number, so that the generator is no longer as its seed makes it."""
        torch.rand(())
        self._is_noted = False


_seedings = _Seedings()


class ModelRngState:
    """The RNG state of one compiled model, advanced by each forward that draws."""

    def __init__(self) -> None:
        self._state: RngState | None = None
        self._seen = (0, 0)
        """The last seeding when the state was set or used."""
        self._count = 0
        """Forwards that drew; the same in all processes."""

    @property
    def state(self) -> RngState:
        """The state that the next forward that draws will use."""
        if self._state is None or _seedings.last() != self._seen:
            return RngState(torch.initial_seed())
        return self._state

    @state.setter
    def state(self, state: RngState) -> None:
        self._state, self._seen = state, _seedings.last()

    def advance(self, session: Session) -> None:
        """Give the session the state for one forward. Raises StrettoError E0609 where processes differ in it."""
        state = self.state
        if isinstance(session, ProcessRank) and _is_compared(self._count, session.world):
            _check_same(state, session.world)
        self._count += 1
        session.rng_state = state
        _seedings.draw()
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
