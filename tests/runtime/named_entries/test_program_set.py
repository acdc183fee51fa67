"""A folder of several entries is read back as it was, or refused; entries agree on the tensors that they share."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stretto.runtime import Program, ProgramError
from stretto.runtime.errors import RunError
from stretto.runtime.loaded_program import load_program
from stretto.runtime.named_entries.program_set import ProgramSet, load_entry
from stretto.runtime.program.folder import manifest_hash
from stretto.runtime.program.records import Shard
from torch import Tensor

from .entries import add, both, expected, held, scaled

PAIR = (("dp", 1), ("tp", 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    both().save(tmp_path / "p")
    return tmp_path / "p"


def refused(code: str, does: Callable[[], object]) -> str:
    with pytest.raises(ProgramError) as caught:
        does()
    assert caught.value.code == code
    return caught.value.render()


def rewritten(folder: Path, **changes: object) -> None:
    """Change the manifest, and seal it again."""
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({**manifest, "hash": manifest_hash(manifest)}))


def test_a_set_is_the_same_after_saving_and_loading_with_each_value_once(folder: Path) -> None:
    loaded = ProgramSet.load(folder)
    assert list(loaded.programs) == ["add", "scaled"] and loaded.has_names
    for entry, program in both():
        own = loaded.program(entry)
        assert (own.inputs, own.outputs, own.functions) == (program.inputs, program.outputs, program.functions)
    assert sorted(loaded.first_values) == ["cache", "count", "weight"]
    assert sorted(path.parent.name for path in folder.rglob("weights.safetensors")) == ["p", "scaled"], "and constants"
    assert torch.equal(loaded.program("scaled").weights["weight"], torch.full((4, 3), 2.0))
    both().save(folder)
    assert list(ProgramSet.load(folder).programs) == ["add", "scaled"], "replaces an older one"


def test_a_folder_of_one_program_is_a_set_of_main(tmp_path: Path) -> None:
    add().save(tmp_path / "p")
    loaded = ProgramSet.load(tmp_path / "p")
    assert list(loaded.programs) == ["main"] and not loaded.has_names
    assert load_entry(tmp_path / "p", None).hash == load_entry(tmp_path / "p", "main").hash
    loaded.save(tmp_path / "q")
    assert Program.load(tmp_path / "q").inputs == add().inputs


def test_an_entry_is_asked_for_by_its_name(folder: Path) -> None:
    assert "has several entries: add, scaled" in refused("E0319", lambda: Program.load(folder))
    assert "add --entry add" in refused("E0319", lambda: load_entry(folder, None))
    assert "did you mean 'scaled'?" in refused("E0319", lambda: load_entry(folder, "scale"))
    assert load_entry(folder, "scaled").folder == folder / "scaled"


@pytest.mark.parametrize("name", ["add/program.json", "add/manifest.json", "weights.safetensors", "manifest.json"])
def test_a_file_that_was_altered_is_refused(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data.replace(b"float32", b"float64").replace(b"F32", b"I32"))
    assert (folder / name).read_bytes() != data or name == "manifest.json"
    if name == "manifest.json":
        (folder / name).write_bytes(data.replace(b'"add"', b'"sub"'))
        (folder / "add").rename(folder / "sub")
    with pytest.raises(ProgramError) as caught:
        ProgramSet.load(folder)
    assert caught.value.code in ("E0303", "E0306")


def test_an_entry_that_was_exchanged_is_refused_though_it_is_whole(folder: Path) -> None:
    shutil.rmtree(folder / "add")
    shutil.copytree(folder / "scaled", folder / "add")
    Program.load(folder / "add")
    assert "add/manifest.json" in refused("E0303", lambda: ProgramSet.load(folder))
    shutil.rmtree(folder / "add")
    refused("E0301", lambda: ProgramSet.load(folder))


@pytest.mark.parametrize("names", [[], "add", ["add", "add"], ["../add"], [1], ["add", "scaled", "third"]])
def test_names_that_are_no_entries_of_the_folder_are_malformed(folder: Path, names: object) -> None:
    rewritten(folder, entries=names)
    refused("E0306", lambda: ProgramSet.load(folder))


def test_files_that_belong_to_no_entry_are_refused(folder: Path) -> None:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    rewritten(folder, files={**files, "../x": hashlib.sha256(b"").hexdigest()})
    assert "lists the unknown file '../x'" in refused("E0306", lambda: ProgramSet.load(folder))
    rewritten(folder, files={key: value for key, value in files.items() if key != "weights.safetensors"})
    refused("E0303", lambda: ProgramSet.load(folder))


ODD = (
    None, True, -1, 0, 2**63, 10**30, 1.5, "", "x", "add", "\ud800", "a" * 9999, [], {}, [[]], [0], [None], [["add"]],
    ["add", 1], {"add": None}, {"": ""}, {"add/manifest.json": 1}, ["manifest.json"], ["add", "\x00"], ["..", "add"],
)  # fmt: skip


@pytest.mark.parametrize("key", ["entries", "files", "format"])
def test_whatever_a_manifest_says_a_folder_is_read_or_refused(folder: Path, key: str) -> None:
    whole = (folder / "manifest.json").read_text()
    for value in ODD:
        for kept in (True, False):
            (folder / "manifest.json").write_text(whole)
            if kept:
                rewritten(folder, **{key: value})
            else:
                changed = {name: each for name, each in json.loads(whole).items() if name != key}
                (folder / "manifest.json").write_text(json.dumps({**changed, "hash": manifest_hash(changed)}))
            try:
                assert set(ProgramSet.load(folder).programs) == {"add", "scaled"}
            except ProgramError as error:
                error.render().encode("utf-8", "replace")


@pytest.mark.parametrize("names", [[], ["../up"], ["a b"], ["x" * 65], [f"e{i}" for i in range(65)]])
def test_names_that_are_no_folders_are_refused(names: list[str]) -> None:
    refused("E0317", lambda: ProgramSet.of({name: add() for name in names}))


def test_what_entries_share_must_lie_alike_and_both_places_are_named() -> None:
    columns = (Shard(1, ("tp",), 2, 3),)
    cases = {
        "dim 0 over tp; in 'scaled' a state, float32 [4, 3], dim 1 over tp": held("state", "cache", 0, columns),
        "in 'scaled' a state, float32 [4, 3], replicated": held("state", "cache", 0, ()),
        "in 'scaled' a buffer, float32 [4, 3]": held("buffer", "cache", 0),
        "in 'scaled' a state, float64 [4, 3]": replace(held("state", "cache", 0), dtype="float64"),
        "in 'scaled' a state, float32 [8, 3]": replace(held("state", "cache", 0), shape=(8, 3)),
    }
    for said, other in cases.items():
        program = scaled()
        wrong = replace(program, inputs=(other, *program.inputs[1:]))
        text = refused("E0316", lambda wrong=wrong: ProgramSet.of({"add": add(), "scaled": wrong}))  # type: ignore[misc]
        assert said in text and "state 'cache' is not the same" in text and "one plan" in text
    text = refused("E0316", lambda: ProgramSet.of({"add": add(), "scaled": scaled((("dp", 4), ("tp", 2)))}))
    assert "mesh (dp=2, tp=2)" in text and "mesh (dp=4, tp=2)" in text
    gathered = replace(scaled().inputs[1], stored_over=("tp",))
    alike = replace(scaled(), inputs=(scaled().inputs[0], gathered, scaled().inputs[2]))
    ProgramSet.of({"a": scaled(), "b": alike})


def test_entries_with_another_first_value_are_refused(tmp_path: Path) -> None:
    other = replace(add(), initial={"cache": torch.ones(4, 3)})
    programs = ProgramSet.of({"add": add(), "more": other})
    assert "one first value in entry 'add'" in refused("E0316", lambda: programs.save(tmp_path / "p"))
    assert not (tmp_path / "p").exists()


def test_a_folder_whose_entries_disagree_is_refused_when_it_is_loaded(folder: Path) -> None:
    program = scaled()
    wrong = replace(program, inputs=(held("state", "cache", 0, ()), *program.inputs[1:]))
    ProgramSet({"add": add(), "scaled": wrong}).save(folder)
    refused("E0316", lambda: ProgramSet.load(folder))


def test_entries_run_on_one_state_without_a_copy_of_it(tmp_path: Path) -> None:
    both(PAIR).save(tmp_path / "p")
    xs = torch.randn(3, 4, 3)
    with load_program(tmp_path / "p") as loaded:
        memory = loaded.tensors["cache"].data_ptr()
        total = torch.zeros(4, 3)
        for turn, x in enumerate(xs):
            total += x
            torch.testing.assert_close(loaded.run("add", x=x)[0], total)
            torch.testing.assert_close(loaded.run("scaled")[0], expected(total))
            if turn == 1:
                loaded.tensors["cache"].zero_()
                total.zero_()
        assert loaded.tensors["cache"].data_ptr() == memory and loaded.tensors["count"].item() == 3
        assert loaded.copied_state_bytes == 8 + 3 * 2 * 8, "the count: a replica, and its new values, which are small"
        torch.testing.assert_close(loaded.full_tensor("cache"), total)


def test_a_script_is_told_what_an_entry_takes(tmp_path: Path) -> None:
    both(PAIR).save(tmp_path / "p")
    with load_program(tmp_path / "p", values={"cache": torch.ones(4, 3)}) as loaded:
        torch.testing.assert_close(loaded.run("scaled")[0], expected(torch.ones(4, 3)))

        def wrong(entry: str, **inputs: Tensor) -> str:
            with pytest.raises((ProgramError, RunError)) as caught:
                loaded.run(entry, **inputs)
            return caught.value.render()

        assert "E0310" in wrong("add") and "input 'x' is missing" in wrong("add")
        assert "did you mean 'x'?" in wrong("add", xs=torch.zeros(4, 3))
        assert "E0319" in wrong("addd") and "E0311" in wrong("add", x=torch.zeros(5, 3))
    bare = ProgramSet.of({"add": replace(add(PAIR), initial={}), "scaled": scaled(PAIR)})
    bare.save(tmp_path / "bare")
    with pytest.raises(RunError, match="no value for state 'cache'") as caught:
        load_program(tmp_path / "bare")
    assert caught.value.code == "E0318" and "float32 [4, 3]" in caught.value.render()
