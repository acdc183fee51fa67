"""Faults planted in the source and in saved folders, by someone who has not read the checkers, are found by a command.

The default run has a sample of them; `pytest -m slow -s` plants the others too and prints who found each.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ...subsets import only
from .finding import Finder, compile_case, find_in_folder
from .program_folder_faults import GPT_FAULTS, FolderFault
from .reference_faults import REFERENCE_FAULTS
from .stage_folder_faults import OTHER_FAULTS, PIPELINE_FAULTS
from .users_models import Case, write_models

FOLDER_FAULTS = GPT_FAULTS | PIPELINE_FAULTS | OTHER_FAULTS | REFERENCE_FAULTS
ORDER = (Finder.LOADING, Finder.VERIFY_FOLDER, Finder.RUN_CHECK, Finder.AGAINST)
SAMPLE = (
    "gradient all-reduced over another axis", "names of two parameters and of their gradients exchanged",
    "loss's tangent taken as 1", "two sends of a stage exchanged", "second microbatch draws as the first",
    "new running mean and variance exchanged", "reference: a trained parameter is not stated",
    "reference: the check is said to be one of inference",
    "weights: a tensor of the forward doubled",
)  # fmt: skip


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's files."""
    folder = tmp_path_factory.mktemp("planted")
    write_models(folder)
    return folder


@pytest.fixture(scope="session")
def folders(sources: Path) -> Folders:
    """Compiled folders, each made when it is first asked for."""
    return Folders(sources)


class Folders:
    """Compiled folders of cases, and copies of them to plant faults in."""

    def __init__(self, sources: Path) -> None:
        self._sources = sources

    def target(self, case: Case) -> str:
        """The case's model, as a command takes it."""
        return f"{self._sources / 'models.py'}:{case.model}"

    def copy(self, case: Case) -> Path:
        """A copy of the case's folder."""
        right = self._sources / f"{case.model} {case.plan}"
        if not right.exists():
            done = compile_case(case, self._sources, right)
            assert done.code == 0, done.err
        copy = self._sources / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(right, copy)
        return copy


def outcome(fault: FolderFault, folders: Folders) -> Finder | None:
    """Who finds a fault of a folder."""
    folder = folders.copy(fault.case)
    fault.plant(folder)
    return find_in_folder(folder, folders.target(fault.case))


def is_due(fault: FolderFault, finder: Finder | None) -> bool:
    """Whether it was found by whoever must find it; one that changes nothing or is known to be missed, by nobody."""
    if fault.equivalent or fault.missed:
        return finder is None
    return finder is not None and ORDER.index(finder) <= ORDER.index(fault.found_by)


@pytest.mark.parametrize("what", only(SAMPLE, FOLDER_FAULTS))
def test_a_fault_of_a_saved_folder_is_found_or_explained(what: str, folders: Folders) -> None:
    fault = FOLDER_FAULTS[what]
    finder = outcome(fault, folders)
    print(f"{what:88.88}  {verdict(fault, finder)}")
    assert is_due(fault, finder)


def verdict(fault: FolderFault, finder: Finder | None) -> str:
    """A cell of the table."""
    if finder is None and fault.equivalent:
        return f"changes nothing: {fault.equivalent}"
    return str(finder or f"MISSED: {fault.missed}")
