"""Kernels run in Triton's interpreter, beside float64, and compile for GPUs that are not there."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason='needs Triton, which runs without a GPU too: pip install ".[cuda]"',
)


def json_of(script: str, *arguments: str, interpret: bool = False) -> object:
    """What a script of this folder prints, in a process of its own: Triton decides at import whether it interprets."""
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if interpret else {})
    command = [sys.executable, "-W", "ignore", str(HERE / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("first", "last"), [(0, 60), pytest.param(60, 2060, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_kernels_of_random_regions_and_of_models_are_right(first: int, last: int) -> None:
    found = json_of("interpreted.py", str(first), str(last), interpret=True)
    assert isinstance(found, dict)
    assert (found["wrong"], found["wrong cases"]) == ({}, {})
    assert found["right"] + found["declined"] == last - first
    assert found["declined"] <= (last - first) // 50, "a reduction that is read at other rows is rare"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_step_of_a_model_is_right_with_every_region_by_its_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run --check` on two ranks: outputs, gradients and parameters beside the single-device reference."""
    monkeypatch.setenv("STRETTO_KERNELS", str(tmp_path))
    found = json_of("training_step.py", interpret=True)
    assert isinstance(found, dict)
    assert found["code"] == 0
    assert found["called"] == found["regions"] >= 15


@pytest.mark.slow
def test_faults_planted_in_the_generator_are_found() -> None:
    """Each makes a random region wrong, so that the comparison with float64 cannot pass for nothing."""
    found = json_of("planted.py", interpret=True)
    assert isinstance(found, dict) and len(found) >= 8
    assert [fault for fault, seeds in found.items() if not seeds] == []


@pytest.mark.parametrize(
    "target", ["sm_90", *[pytest.param(each, marks=pytest.mark.slow) for each in ("sm_100", "gfx942")]]
)
def test_kernels_compile_for_gpus_and_spill_no_registers(target: str) -> None:
    resources = json_of("compiled.py", target)
    assert isinstance(resources, dict) and len(resources) >= 8
    for name, (shared, registers, spilled) in resources.items():
        assert shared <= 48 * 1024, name
        assert registers is not None and registers <= 255, name
        assert spilled == 0, name
