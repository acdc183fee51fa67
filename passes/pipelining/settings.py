"""What a plan says of its pipeline, as the passes need it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ...diagnostics import Span
from ...dsl.plan import Plan
from ...schedules.schedule import Schedule


class Balance(StrEnum):
    """What stages have equal shares of."""

    TIME = "time"
    MEMORY = "memory"
    LAYERS = "layers"


@dataclass(frozen=True)
class Settings:
    """The pipeline of a plan."""

    axis: str
    schedule: Schedule
    balance: Balance = Balance.TIME
    split: tuple[tuple[str, ...], ...] = ()
    span: Span | None = None

    @property
    def stages(self) -> int:
        """How many virtual stages there are."""
        return self.schedule.stages

    @staticmethod
    def of(plan: Plan) -> Settings | None:
        """None for a plan without a pipeline."""
        said = getattr(plan, "pipeline_settings", None)
        return said
