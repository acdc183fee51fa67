"""Faults planted in the source, by someone who has not read the checkers, are found by the user's commands or loops.

The default run has a sample of them; `pytest -m slow -s` plants the others too and prints who found each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from stretto.diagnostics import StrettoError
from stretto.passes.pipelining import scheduled_pipeline
from stretto.runtime.threads import session
from stretto.runtime.threads.communicator import RankGroup

from ...subsets import only
from .finding import CRASHES, Finder, command, compile_case, find_in_compile, table, target_of
from .process_faults import PROCESS_FAULTS
from .source_faults import SourceFault
from .source_faults_alone import ALONE_FAULTS
from .source_faults_calls import CALL_FAULTS
from .source_faults_capture import CAPTURE_FAULTS
from .source_faults_items import ITEM_FAULTS
from .source_faults_lowering import LOWERING_FAULTS, RING_FAULTS, SCHEDULE_FAULTS
from .source_faults_random import RANDOM_FAULTS
from .source_faults_runtime import RUNTIME_FAULTS
from .source_faults_training import TRAINING_FAULTS
from .source_faults_unseen import UNSEEN_FAULTS
from .source_faults_values import VALUE_FAULTS
from .training_loops import LOOPS
from .users_models import Case, write_models

COMPILED_FAULTS: dict[str, SourceFault] = {
    **CALL_FAULTS, **RANDOM_FAULTS, **CAPTURE_FAULTS, **RUNTIME_FAULTS, **LOWERING_FAULTS, **RING_FAULTS,
    **SCHEDULE_FAULTS, **UNSEEN_FAULTS, **ALONE_FAULTS, **VALUE_FAULTS, **ITEM_FAULTS,
}  # fmt: skip
SOURCE_FAULTS = {**COMPILED_FAULTS, **TRAINING_FAULTS}
COMMANDS = (Finder.COMPILE_CHECK, Finder.VERIFY_TARGET)
QUICK = (
    "a parameter silently gets no gradient",
    "of several backwards the last gradient stays", "a second checkpoint does not replace the first",
)  # fmt: skip
"""Those of the default run."""
TIMEOUT_S = 20.0
"""Seconds that rank threads wait for each other while a fault is planted."""
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's files."""
    folder = tmp_path_factory.mktemp("planted in source")
    write_models(folder)
    return folder


@pytest.fixture
def planting() -> Iterator[pytest.MonkeyPatch]:
    """Where faults are planted; ranks that miss each other say so soon."""
    with pytest.MonkeyPatch.context() as patch:
        impatient(patch)
        yield patch
    scheduled_pipeline._schedule.cache_clear()


def impatient(patch: pytest.MonkeyPatch) -> None:
    """Rank threads wait a short time only, and schedules are made anew."""
    scheduled_pipeline._schedule.cache_clear()
    patch.setattr(session, "RankGroup", lambda mesh, timeout_s: RankGroup(mesh, min(timeout_s, TIMEOUT_S)))


def find(fault: SourceFault, sources: Path, folder: Path) -> Finder | None:
    """Who finds a planted fault; the one who must find it looks first."""
    if fault.found_by is Finder.TRAINING:
        return None if passes(fault.scenario, folder) else Finder.TRAINING
    others = [finder for finder in COMMANDS if finder is not fault.found_by]
    finder = find_in_compile(fault.case, sources, folder / "program", [fault.found_by, *others])
    if finder is None and fault.scenario:
        return None if passes(fault.scenario, folder) else Finder.TRAINING
    return finder


def passes(loop: str, folder: Path) -> bool:
    """Whether a training loop gives what plain PyTorch does."""
    folder.mkdir(exist_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            LOOPS[loop](folder)
    except (StrettoError, *CRASHES):
        return False
    return True


def verdict(fault: SourceFault, finder: Finder | None) -> str:
    """A cell of the table."""
    if finder is None and fault.equivalent:
        return f"changes nothing: {fault.equivalent}"
    seen = f", but {finder} sees it" if finder else ""
    return f"MISSED{seen}: {fault.missed}" if fault.missed or finder is None else str(finder)


def is_due(fault: SourceFault, finder: Finder | None) -> bool:
    """Whether it was found; of one that changes nothing or is known to be missed, whether no command finds it."""
    if fault.missed:
        return finder is None or finder is Finder.TRAINING
    return (finder is None) == bool(fault.equivalent)


def test_what_faults_replace_is_where_they_say() -> None:
    """So that a change of names shows in the default run, which tries few of them."""
    for fault in SOURCE_FAULTS.values():
        with pytest.MonkeyPatch.context() as patch:
            fault.plant(patch)


@pytest.mark.parametrize("what", only(QUICK, SOURCE_FAULTS))
def test_a_fault_of_the_source_is_found_or_explained(
    what: str, sources: Path, tmp_path: Path, planting: pytest.MonkeyPatch
) -> None:
    fault = SOURCE_FAULTS[what]
    fault.plant(planting)
    finder = find(fault, sources, tmp_path)
    print(f"{what:88.88}  {verdict(fault, finder)}")
    assert is_due(fault, finder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_fault_of_processes_is_found(tmp_path: Path) -> None:
    said = said_of_processes(tmp_path, *PROCESS_FAULTS)
    print(table([(what, f"training by processes: {why:.60}" if why else "MISSED") for what, why in said.items()]))
    assert list(said) == list(PROCESS_FAULTS) and all(said.values())


@pytest.mark.slow
def test_loops_of_processes_pass_where_nothing_is_planted(tmp_path: Path) -> None:
    assert said_of_processes(tmp_path, "none") == {"none": ""}


def said_of_processes(folder: Path, *names: str) -> dict[str, str]:
    """By fault, what the processes say that went wrong; all by one launch."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "tests.faults.planted.rank_script", str(folder), *names]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["fault"]: next(filter(None, line["said"]), "") for line in lines}


CASES = tuple(dict.fromkeys(fault.case for fault in COMPILED_FAULTS.values() if fault.found_by is not Finder.TRAINING))
REFUSED = {"straight_through": "E0227", "hooked": "E0227"}
"""Models that capture refuses, by the error's code."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_commands_pass_where_nothing_is_planted(case: Case, sources: Path, tmp_path: Path) -> None:
    done = compile_case(case, sources, tmp_path / "program", "--check")
    if case.model in REFUSED:
        assert REFUSED[case.model] in done.err
        return
    if case.model == "skips_layers":
        assert done.code == 1  # `verify` calls the model once, and may draw what capture drew
        return
    judged = partial(command, "verify", target_of(case, sources), "--plan", sources / f"{case.plan}.plan")
    mode = [option for option in case.options if option in ("--mode", "infer")]
    assert (done.code, judged(*mode).code) == (0, 0), done.out + done.err


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
def test_loops_pass_where_nothing_is_planted(loop: str, tmp_path: Path) -> None:
    LOOPS[loop](tmp_path)
