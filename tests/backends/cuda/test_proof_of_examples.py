"""Streams of compiled example plans are proved, and faults planted in them found: the long form of `test_proof.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from stretto.backends.cuda.agreement import prove
from stretto.backends.cuda.proof import StreamFault
from stretto.backends.cuda.recording import recorded
from stretto.cli import main
from stretto.runtime.program.program import Program

from .planted import KINDS, Logs, planted
from .test_proof import CODES, FAULTS

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[3] / "examples"
RING = "mesh (sp=2)\nshard inputs dim 1 over sp\nattention over sp { method ring  layout zigzag }\n"
PLANS = {
    "tp": None,
    "zero3": None,
    "pp": None,
    "ring": RING,
    "lanes": 'mesh (tp=2)\nshard "*.{q,k,v}_proj", "*.{gate,up}_proj" columns over tp\n'
    'shard "*.o_proj", "*.down_proj" rows over tp\nsplit batch into 2 { order interleave }\n',
}
"""By name: a plan of `examples/plans`, or its text."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Program]:
    folder = tmp_path_factory.mktemp("streams")
    found = {}
    for name, text in PLANS.items():
        plan = EXAMPLES / "plans" / f"{name}.plan"
        if text is not None:
            plan = folder / f"{name}.plan"
            plan.write_text(text, encoding="utf-8")
        assert main(["compile", f"{EXAMPLES}/targets.py:gpt", "--plan", str(plan), "-o", str(folder / name)]) == 0
        found[name] = Program.load(folder / name)
    return found


def logs_of(program: Program, *, capture: bool) -> Logs:
    return [recorded(program, rank, capture=capture) for rank in range(program.mesh.ranks)]


@pytest.mark.parametrize("capture", [False, True], ids=["streams", "graphs"])
def test_the_streams_of_example_plans_are_proved(programs: dict[str, Program], capture: bool) -> None:
    for program in programs.values():
        prove(logs_of(program, capture=capture))


@pytest.mark.parametrize("kind", KINDS)
def test_faults_planted_in_example_plans_are_found(programs: dict[str, Program], kind: str) -> None:
    logs = [logs_of(each, capture=kind == "graphs") for each in programs.values()]
    for what, each in planted(kind, logs, FAULTS, seed=2):
        with pytest.raises(StreamFault) as caught:
            prove(each)
        assert caught.value.code in CODES[kind], (what, caught.value.message)
