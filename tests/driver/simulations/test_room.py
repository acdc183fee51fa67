"""What would make a model fit: statements that fit come by the time of their steps, others by what they save."""

from __future__ import annotations

from dataclasses import replace

import pytest
from stretto.backends.simulator.calls import Spent
from stretto.backends.simulator.simulation import Simulation, StageTime
from stretto.driver.simulations.room import fits, remedies
from stretto.dsl.clusters.cluster import Cluster
from stretto.dsl.error import PlanError
from stretto.dsl.plan import Plan

CLUSTER = Cluster.parse('cluster { nodes 1  gpus 2  gpu "A100-SXM-80GB"  network 25GB/s }', "<cluster>")
PLAN = Plan.parse("mesh (dp=2)\n")


def step(peak: int, seconds: float, room: float) -> Simulation:
    spent = replace(Spent(), end=seconds)
    return Simulation(CLUSTER, 2, (StageTime(0, spent, 0.0, peak, {}),), None, room)


def simulated(room: float):
    """zero saves by its level and takes longer, recompute saves most, split loss saves nothing."""
    figures = {"zero 1": (90, 1.0), "zero 2": (80, 1.1), "zero 3": (60, 1.3), "recompute": (50, 1.5)}

    def of(plan: Plan) -> Simulation:
        text = plan.text.splitlines()[-1]
        peak, seconds = next((value for key, value in figures.items() if text.startswith(key)), (100, 1.0))
        if "zero 3" in plan.text and "recompute" in plan.text:
            peak, seconds = 20, 2.0
        return step(peak, seconds, room)

    return of


def test_the_three_quickest_that_fit_are_given() -> None:
    base = step(100, 1.0, room=85)
    assert not fits(base) and fits(step(85, 1.0, room=85))
    whole = remedies(PLAN, base, simulated(85))
    found = whole.shown
    assert [each.statement for each in found] == ["zero 2 over dp", "zero 3 over dp", "recompute attention"]
    assert all(each.fits for each in found)
    why = dict(whole.others)
    assert why["zero 1 over dp"].startswith("needs 90 B") and why["split loss into 8"] == "saves nothing"


def test_where_none_fits_those_that_save_most_are_given() -> None:
    found = remedies(PLAN, step(100, 1.0, room=10), simulated(10)).shown
    assert [each.peak_bytes for each in found] == [20, 50, 50] and not any(each.fits for each in found)


def test_statements_that_the_plan_has_or_refuses_are_left_out() -> None:
    tried: list[str] = []

    def refusing(plan: Plan) -> Simulation:
        tried.append(plan.text.splitlines()[-1])
        raise PlanError("E0112", "refused")

    plan = Plan.parse("mesh (dp=2)\nzero 1 over dp\nsplit loss into 4\n")
    found = remedies(plan, step(100, 1.0, room=10), refusing)
    assert found.shown == [] and dict(found.others)["recompute attention"] == "refused: refused"
    assert tried == ["recompute attention", 'recompute "*"'], "a second zero and a second split loss are refused"


@pytest.mark.parametrize("text", ["mesh (tp=2)\n", "mesh (pp=2)\npipeline over pp { microbatches 2 }\n"])
def test_without_an_axis_of_data_there_is_no_zero(text: str) -> None:
    seen: list[str] = []
    remedies(Plan.parse(text), step(100, 1.0, room=10), lambda plan: seen.append(plan.text) or step(90, 1.0, 10))
    assert seen and not any("zero" in each for each in seen)
