"""How the suite runs: by how many processes and threads, and from a clone of any name."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; workers and the processes of tests inherit it
os.environ["STRETTO_CACHE"] = "0"  # no test leaves a program behind, or takes one of an earlier run

settings.register_profile("stretto", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("stretto")  # a busy machine fails no test

_SLOW_TESTS = Path(__file__).with_name("slow_tests.txt")
_MOST_WORKERS = 8
"""More cores than this save little: each worker takes seconds, and 0.6 GB, to import torch and the compiler."""


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_AnyCloneName(), "any clone name")


class _AnyCloneName:
    """The root is the package `stretto`; pytest would import it by the clone's name, which may be no identifier."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        if path != parent.config.rootpath:
            return None
        collector: pytest.Collector = pytest.Dir.from_parent(parent, path=path)
        return collector


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """No workers for a few files, where importing torch once more would take longer than the tests."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    paths = [Path(argument.partition("::")[0]) for argument in config.args]
    if all(path.is_file() for path in paths):
        return 0
    return min(len(os.sched_getaffinity(0)), _MOST_WORKERS)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark as slow what `slow_tests.txt` lists: costly tests, beside which others of their kind run by default."""
    listed = set(_SLOW_TESTS.read_text(encoding="utf-8").splitlines())
    for item in items:
        if item.nodeid in listed:
            item.add_marker(pytest.mark.slow)
    if not any("::" in argument for argument in config.args):
        files = {item.nodeid.partition("::")[0] for item in items}
        stale = {line for line in listed if line.partition("::")[0] in files} - {item.nodeid for item in items}
        if stale:
            raise pytest.UsageError(f"{_SLOW_TESTS.name} lists tests that there are not: {', '.join(sorted(stale))}")


def pytest_collection_finish() -> None:
    """What was imported stays: collections of garbage need not look at it, which is about 4% of the suite's time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test and its fixtures draw from the same seed, whatever ran before."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Files that an error leaves for its reader, as the IR of a pass that failed, lie where pytest cleans up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("left")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT interrupts this process and those it starts, also where the suite was started with SIGINT ignored.

    Shells ignore it for background jobs, some CI for all; Python leaves it so, and hands it on to child processes.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
