"""The entries of the compile cache on disk: written whole, read as checked data, removed when there are too many."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from stretto import Plan
from stretto.driver.cache.location import cache_folder
from stretto.driver.cache.store import CacheFault, ProgramStore
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest
from stretto.runtime.program.program import Program
from stretto.runtime.program.versions import FORMAT
from torch import nn

KEY, OTHER = "a" * 64, "b" * 64


@pytest.fixture(scope="module")
def program() -> Program:
    request = CompileRequest.of(nn.Linear(4, 4), (torch.ones(2, 4),), {}, Plan.parse("mesh (dp=2)"))
    return compile_program(request).program


@pytest.fixture
def store(tmp_path: Path) -> ProgramStore:
    return ProgramStore(tmp_path / "cache")


def entry(store: ProgramStore, key: str = KEY) -> Path:
    return store.folder / "programs" / f"{key}.program"


def test_an_entry_is_the_program_without_its_weights(store: ProgramStore, program: Program) -> None:
    store.keep(KEY, program, {"more": 1})
    found = store.find(KEY)
    assert found is not None
    assert found.program.texts() == program.texts()
    assert found.program.hash == program.hash
    assert not found.program.weights
    assert found.notes["more"] == 1
    assert store.find(OTHER) is None


def test_only_the_user_may_read_the_entries(store: ProgramStore, program: Program) -> None:
    store.keep(KEY, program, {})
    assert stat.S_IMODE(entry(store).stat().st_mode) == 0o600
    assert stat.S_IMODE(entry(store).parent.stat().st_mode) == 0o700


def _sealed(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest() + text.encode()


def _with_op(data: bytes, op: str) -> bytes:
    content = json.loads(data[32:])
    content["files"]["program.json"] = content["files"]["program.json"].replace("aten.t.default", op)
    return _sealed(json.dumps(content))


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is torn"),
    "torn": (lambda data: data[: len(data) // 2], "is torn"),
    "altered": (lambda data: data.replace(b"aten.", b"atem.", 1), "was altered"),
    "no JSON": (lambda data: _sealed("{"), "not JSON"),
    "no program": (lambda data: _sealed("{}"), "malformed"),
    "an op that is not in the table": (
        lambda data: _with_op(data, "aten.from_file.default"),
        "not in the table of ops",
    ),
    "another key's": (lambda data: _sealed(data[32:].decode().replace(KEY, OTHER)), "of another key"),
    "of another format": (
        lambda data: _sealed(data[32:].decode().replace(f'"format":{FORMAT}', '"format":1')),
        "format 1",
    ),
    "too deep": (lambda data: _sealed("[" * 100_000), "levels deep|recursion"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_refused_and_removed(store: ProgramStore, program: Program, damage: str) -> None:
    store.keep(KEY, program, {})
    change, message = DAMAGES[damage]
    data = entry(store).read_bytes()
    assert change(data) != data
    entry(store).write_bytes(change(data))
    with pytest.raises(CacheFault, match=message):
        store.find(KEY)
    assert store.find(KEY) is None
    store.keep(KEY, program, {})
    assert store.find(KEY) is not None


def test_what_was_used_longest_ago_goes_first(store: ProgramStore, program: Program) -> None:
    store.keep(KEY, program, {})
    size = entry(store).stat().st_size
    small = ProgramStore(store.folder, 2 * size + 100)
    small.keep(OTHER, program, {})
    os.utime(entry(store), (1, 1))
    os.utime(entry(store, OTHER), (2, 2))
    small.find(KEY)
    small.keep("c" * 64, program, {})
    assert small.find(KEY) is not None
    assert small.find(OTHER) is None
    assert small.size().entries == 2


def test_a_program_that_is_larger_than_the_cache_is_not_kept(store: ProgramStore, program: Program) -> None:
    with pytest.raises(CacheFault, match="more than the compile cache keeps"):
        ProgramStore(store.folder, 100).keep(KEY, program, {})
    assert store.size().entries == 0


def test_temporary_files_of_processes_that_died_go_after_an_hour(store: ProgramStore, program: Program) -> None:
    store.keep(KEY, program, {})
    old, new = entry(store).with_name("new_old.partial"), entry(store).with_name("new_new.partial")
    old.touch(), new.touch()
    os.utime(old, (1, 1))
    store.keep(OTHER, program, {})
    assert not old.exists()
    assert new.exists()


def test_clearing_removes_the_entries_and_nothing_else(store: ProgramStore, program: Program) -> None:
    store.keep(KEY, program, {})
    foreign = entry(store).with_name("notes.txt")
    foreign.touch()
    store.clear()
    assert store.size().entries == 0
    assert foreign.exists()


def test_several_may_write_one_entry_at_once(store: ProgramStore, program: Program) -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(store.keep, KEY, program, {}) for _ in range(12)]:
            done.result()
    assert store.find(KEY) is not None
    assert [path.name for path in entry(store).parent.iterdir()] == [entry(store).name]


def test_a_folder_that_cannot_be_written_is_a_fault_and_leaves_nothing(
    store: ProgramStore, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.folder.parent.mkdir(exist_ok=True)
    store.folder.write_text("a file, where the folder should be")
    with pytest.raises(CacheFault, match="cannot be written"):
        store.keep(KEY, program, {})
    with pytest.raises(CacheFault, match="cannot be read"):
        store.find(KEY)


def test_a_full_disk_is_a_fault_and_leaves_no_temporary_file(
    store: ProgramStore, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CacheFault, match="No space left on device"):
        store.keep(KEY, program, {})
    assert not list(entry(store).parent.iterdir())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("STRETTO_CACHE")
    yield tmp_path


def test_the_cache_is_in_the_users_cache_folder_and_a_variable_moves_it_or_turns_it_off(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder() == home / ".cache" / "stretto"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/stretto")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == home / ".cache" / "stretto"
    monkeypatch.setenv("STRETTO_CACHE", "~/mine")
    assert cache_folder() == home / "mine"
    for off in ("0", "off", "OFF"):
        monkeypatch.setenv("STRETTO_CACHE", off)
        assert cache_folder() is None
        assert ProgramStore.of_user() is None
