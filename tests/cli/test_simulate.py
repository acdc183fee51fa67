"""`stretto simulate`: a program's step on a cluster, as text and as JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from .conftest import Command

CLUSTER = 'cluster { nodes 1  gpus 4  gpu "A100-SXM-80GB"  network 25GB/s }'


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    path = tmp_path / "one.cluster"
    path.write_text(CLUSTER)
    return path


def test_a_step_has_parts_and_memory(stretto: Command, program: Path, cluster: Path) -> None:
    done = stretto("simulate", program, "--cluster", cluster)
    assert (done.code, done.err) == (0, "")
    assert "where the time goes" in done.out and "communication over tp" in done.out and "fits" in done.out
    found = json.loads(stretto("simulate", program, "--cluster", cluster, "--json").out)
    (stage,) = found["stages"]
    assert sum(stage["parts"].values()) == pytest.approx(found["seconds"])
    assert set(stage["communicated"]) >= {"dp", "tp"} and stage["peak_bytes"] < found["memory_bytes"]
    assert sum(stage["memory"].values()) == stage["peak_bytes"] and min(stage["memory"].values()) > 0


def test_a_slower_network_takes_longer(stretto: Command, program: Path, cluster: Path) -> None:
    cluster.write_text(CLUSTER.replace("nodes 1  gpus 4", "nodes 4  gpus 1"))
    done = stretto("simulate", program, "--cluster", cluster, "--set", "network=1MB/s,25GB/s", "--json")
    slow, fast = (each["seconds"] for each in json.loads(done.out).values())
    assert slow > 2 * fast


def test_a_wrong_item_is_refused_in_words(stretto: Command, program: Path, cluster: Path) -> None:
    done = stretto("simulate", program, "--cluster", cluster, "--set", "network=25")
    assert done.code == 1 and "E0804" in done.err and "a number with a unit glued to it" in done.err


def test_a_trace_has_every_lane(stretto: Command, program: Path, cluster: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    done = stretto("simulate", program, "--cluster", cluster, "--trace", trace, "--json")
    events = json.loads(trace.read_text())["traceEvents"]
    lanes = {each["args"]["name"]: each["tid"] for each in events if each["name"] == "thread_name"}
    assert lanes.keys() >= {"compute", "dp", "tp", "calls"}
    tasks = [each for each in events if each["ph"] == "X" and each["tid"] != lanes["calls"]]
    assert len(tasks) < len([each for each in events if each["ph"] == "X"])
    computed = sum(each["dur"] for each in tasks if not each["name"].startswith("all_"))
    (stage,) = json.loads(done.out)["stages"]
    kinds = ("matrix products", "attention", "memory-bound")
    assert computed / 1e6 == pytest.approx(sum(stage["parts"].get(kind, 0.0) for kind in kinds))
    assert any("model.py:" in each["args"]["place"] for each in tasks)


def test_a_target_needs_a_plan(stretto: Command, cluster: Path) -> None:
    done = stretto("simulate", "model.py:make", "--cluster", cluster)
    assert done.code == 2 and "name its file with --plan FILE" in done.err


def test_a_real_run_and_a_simulation_are_compared(
    stretto: Command, program: Path, cluster: Path, tmp_path: Path
) -> None:
    assert stretto("run", program, "--steps", 2, "--trace", tmp_path / "real.json").code == 0
    done = stretto("compare", tmp_path / "real.json", program, "--cluster", cluster)
    assert done.code == 0 and "A  " in done.out and "(steps: 2, ranks: 4)" in done.out
    found = json.loads(stretto("compare", tmp_path / "real.json", program, "--cluster", cluster, "--json").out)
    real, simulated = (sum(part["seconds"][side] for part in found["parts"]) for side in (0, 1))
    assert [real, simulated] == pytest.approx(found["seconds"]) and real > simulated
    both = [each["name"] for each in found["collectives"] if min(each["seconds"]) > 0]
    assert {name.partition(" over ")[2] for name in both} >= {"dp", "tp"}
    refused = stretto("compare", tmp_path / "real.json", program)
    assert refused.code == 2 and "--cluster FILE" in refused.err


def test_a_page_of_its_own_has_the_step_and_loads_nothing(
    stretto: Command, program: Path, cluster: Path, tmp_path: Path
) -> None:
    file = tmp_path / "step.html"
    found = json.loads(stretto("simulate", program, "--cluster", cluster, "--html", file, "--json").out)
    text = file.read_text(encoding="utf-8")
    assert "http" not in text and "src=" not in text and "@import" not in text
    (written,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    data = json.loads(written)
    assert "{{" not in text and "<" not in written, "no text of a program ends the script"
    assert {"calls", "compute", "dp", "tp"} <= set(data["lanes"])
    assert data["end"] <= found["seconds"] and max(task[4] for task in data["tasks"]) == data["end"]
    assert [row[0] for row in data["time"]] == list(found["stages"][0]["parts"])
    refused = stretto("simulate", program, "--cluster", cluster, "--html", file, "--set", "network=1GB/s")
    assert refused.code == 2 and "leave out --set" in refused.err
