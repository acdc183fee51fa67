"""Faults that no command saw: a plan that is read wrongly, inputs' gradients, forwards before a backward, a seed."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from stretto.driver.model.rng_state import ModelRngState
from stretto.dsl import resolve
from stretto.dsl.plan import Plan
from stretto.dsl.resolve import OwnerKind
from stretto.dsl.shard import Role
from stretto.frontend.capture import capture
from stretto.runtime.rank.executor import Frame
from stretto.runtime.threads.session import RankThreads

from .finding import Finder
from .source_faults import Plant, SourceFault, Wrong, around, entry, value
from .source_faults_training import seed_of_the_first_call
from .users_models import Case

CALLS, DIFFERENTIATED, DROPS = Case("calls", "dp", ()), Case("differentiated", "dp", ()), Case("draws", "dp", ())


def fault(where: str, plant: Plant, case: Case) -> SourceFault:
    return SourceFault(where, plant, Finder.COMPILE_CHECK, case)


def first_match(plan: Plan, name: str) -> Any:
    return next((statement for statement in plan.parameters if resolve.matches(statement, name)), None)


def first_gradient_alone(right: Wrong) -> Wrong:
    """Of several inputs that require a gradient the first gets one."""

    def wrong(item: Any, **changes: Any) -> Any:
        wanted = changes.get("differentiable")
        return right(item, **(changes if wanted is None else {"differentiable": frozenset(sorted(wanted)[:1])}))

    return wrong


class OfTheLastForward(Frame):
    """The frame of a rank that keeps no values of its own: a backward reads what the last forward saved."""

    last: ClassVar[dict[int, list[torch.Tensor]]] = {}

    def __init__(self, rank: int, values: list[torch.Tensor]) -> None:
        self.rank, self.last[rank] = rank, values

    def take(self) -> list[torch.Tensor]:
        return list(self.last[self.rank])


def of_the_last_forward(right: Wrong) -> Wrong:
    def wrong(session: Any, *args: Any, **kwargs: Any) -> Any:
        outputs, state = right(session, *args, **kwargs)
        state.saved = [OfTheLastForward(rank, frame.take()) for rank, frame in enumerate(state.saved)]
        return outputs, state

    return wrong


UNSEEN_FAULTS = {
    "of the statements that match a parameter the first decides": fault(
        "dsl/resolve: _last_match", value(resolve, "_last_match", first_match), Case("gpt", "over", ())
    ),
    "the columns of a linear layer are its inputs": fault(
        "dsl/resolve: _DIMS",
        entry(resolve._DIMS, (OwnerKind.LINEAR, Role.COLUMNS, "weight"), 1),  # type: ignore[arg-type]
        Case("gpt", "dp_tp", ()),
    ),
    "of two inputs that require a gradient the first gets one": fault(
        "frontend/capture/capture: _assembled", around(capture, "replace", first_gradient_alone), DIFFERENTIATED
    ),
    "a backward reads what the last forward saved": fault(
        "runtime/threads/session: forward", around(RankThreads, "forward", of_the_last_forward), CALLS
    ),
    "a model goes on with the random numbers of torch's first seed": fault(
        "driver/model/rng_state: state", around(ModelRngState, "state", seed_of_the_first_call), DROPS
    ),
}
