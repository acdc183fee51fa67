"""Choices of values: each item in turn, a program compiled once for each plan; what is no item is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from stretto.backends.simulator.calls import Spent
from stretto.backends.simulator.simulation import Simulation, StageTime
from stretto.diagnostics import StrettoError
from stretto.driver.simulations.sweep import Change, changes_of, plot, sweep
from stretto.dsl.clusters.cluster import Cluster
from stretto.dsl.plan import Plan

CLUSTER = Cluster.parse('cluster { nodes 1  gpus 2  gpu "A100-SXM-80GB"  network 25GB/s }', "<cluster>")
PLAN = Plan.parse("mesh (pp=2)  # microbatches 9\npipeline over pp { microbatches 4  schedule 1f1b }\n")


def swept(texts: list[str], plan: Plan | None = PLAN) -> tuple[list[tuple[tuple[str, ...], str, float]], list[str]]:
    """Values, plan and network of each point; and the plans that were compiled."""
    compiled: list[str] = []
    seen: list[tuple[str, float]] = []

    def compile_(given: Plan | None) -> Any:
        compiled.append("" if given is None else given.text)
        return compiled[-1]

    def price(program: Any, on: Cluster) -> Simulation:
        seen.append((program, on.network))
        return Simulation(on, 2, (StageTime(0, replace(Spent(), end=1.0 + len(seen)), 0.0, 1, {}),), None, 80e9)

    changes = changes_of(texts)
    assert not isinstance(changes, str)
    points = list(sweep(changes, CLUSTER, plan, compile_, price))
    return [(point.values, *each) for point, each in zip(points, seen, strict=True)], compiled


def test_all_choices_are_taken_and_each_plan_is_compiled_once() -> None:
    points, compiled = swept(["microbatches=4,8", "network=1GB/s,2GB/s"])
    assert [values for values, _, _ in points] == [("4", "1GB/s"), ("4", "2GB/s"), ("8", "1GB/s"), ("8", "2GB/s")]
    assert [network for _, _, network in points] == [1e9, 2e9, 1e9, 2e9]
    assert [text.splitlines()[1] for text in compiled] == [
        f"pipeline over pp {{ microbatches {count}  schedule 1f1b }}" for count in (4, 8)
    ]
    assert all(text.splitlines()[0] == "mesh (pp=2)  # microbatches 9" for text in compiled), "comments stay"


def test_an_axis_of_the_mesh_is_a_number_of_the_plan() -> None:
    assert swept(["pp=4"])[1][0].startswith("mesh (pp=4)")


@pytest.mark.parametrize("text", ["network", "network=", "=3", "network=1GB/s,,2GB/s"])
def test_a_text_that_is_no_change_is_given_back(text: str) -> None:
    assert changes_of(["nodes=1", text]) == text


@pytest.mark.parametrize(
    ("item", "plan", "said"),
    [
        ("microbatch", PLAN, "nor a number of the plan"),
        ("microbatches", None, "no item of the cluster"),
        ("dp", Plan.parse("mesh (dp=2)\nzero 1 over dp\nsplit loss into 8\nsplit batch into 2\n"), ""),
        ("into", Plan.parse("mesh (dp=2)\nsplit loss into 8\nsplit batch into 2\n"), '2 numbers behind "into"'),
    ],
)
def test_what_is_no_single_number_is_refused(item: str, plan: Plan | None, said: str) -> None:
    if not said:
        assert swept([f"{item}=4"], plan)[1][0].startswith("mesh (dp=4)")
        return
    with pytest.raises(StrettoError) as caught:
        swept([f"{item}=4"], plan)
    assert caught.value.code == "E0809" and said in caught.value.message and "network" in caught.value.expected
    assert "schedule" not in caught.value.expected, "1f1b is no number"


def test_a_plot_has_a_bar_for_each_point() -> None:
    changes = [Change("network", ("1GB/s", "<2GB/s"))]
    points = [
        type("P", (), {"values": (value,), "simulation": Simulation(
            CLUSTER, 2, (StageTime(0, replace(Spent(), end=seconds), 0.0, 1, {}),), None, 80e9
        )})()
        for value, seconds in zip(changes[0].values, (2.0, 1.0), strict=True)
    ]  # fmt: skip
    root = ElementTree.fromstring(plot(changes, points))
    bars = [each for each in root if each.tag.endswith("rect") and each.get("fill") == "#9dbbe3"]
    assert [float(str(bar.get("width"))) for bar in bars] == [520.0, 260.0]
