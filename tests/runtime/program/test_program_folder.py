"""A program folder is read back as it was, or refused with what is wrong; it is written whole or not at all."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from stretto.runtime import Program, ProgramError
from stretto.runtime.program.folder import manifest_hash

from ..tiny_programs import linear


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    linear().save(tmp_path / "program")
    return tmp_path / "program"


def refused(folder: Path, code: str) -> str:
    with pytest.raises(ProgramError) as caught:
        Program.load(folder)
    assert caught.value.code == code
    return caught.value.render()


def edit_manifest(folder: Path, *, seal: bool, **changes: Any) -> None:
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_text()), **changes}
    if seal:
        manifest["hash"] = manifest_hash(manifest)
    path.write_text(json.dumps(manifest))


def rewrite(folder: Path, name: str, text: str) -> None:
    """Change a file and its hash: what only the checks behind the hashes can find."""
    import hashlib

    (folder / name).write_text(text)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit_manifest(folder, seal=True, files={**files, name: hashlib.sha256(text.encode()).hexdigest()})


def test_a_program_is_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    program = linear()
    program.save(tmp_path / "p")
    loaded = Program.load(tmp_path / "p")
    assert (loaded.inputs, loaded.outputs, loaded.functions) == (program.inputs, program.outputs, program.functions)
    assert loaded.locations == program.locations
    assert loaded.manifest == program.manifest
    assert loaded.single_device == program.single_device
    assert dict(loaded.weights) == {}


def test_weights_are_read_when_asked_for_even_where_they_share_storage(tmp_path: Path) -> None:
    from dataclasses import replace

    whole = torch.arange(6.0)
    program = replace(linear(), initial={"w": whole.reshape(2, 3), "part": whole[2:4], "t": whole.reshape(2, 3).t()})
    program.save(tmp_path / "p")
    weights = Program.load(tmp_path / "p").weights
    assert torch.equal(weights["w"], whole.reshape(2, 3))
    assert torch.equal(weights["part"], whole[2:4])
    assert torch.equal(weights["t"], whole.reshape(2, 3).t())


def test_the_hash_of_a_loaded_program_is_its_manifests(folder: Path) -> None:
    assert Program.load(folder).hash == json.loads((folder / "manifest.json").read_text())["hash"]
    assert linear().hash == linear().hash != linear(width=6).hash


def test_a_folder_without_a_manifest_is_not_a_program(tmp_path: Path) -> None:
    assert "not a program folder" in refused(tmp_path, "E0301")
    assert "it does not exist" in refused(tmp_path / "nowhere", "E0301")
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused(tmp_path / "file", "E0301")


def test_a_folder_that_does_not_exist_is_answered_with_the_nearest_program(folder: Path) -> None:
    message = refused(folder.parent / "porgram", "E0301")
    assert "it does not exist" in message and f"did you mean '{folder}'?" in message


@pytest.mark.parametrize("text", ["[]", "{}"])
def test_a_foreign_manifest_is_not_a_program(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    refused(tmp_path, "E0301")


def test_a_truncated_manifest_is_named(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])
    assert "manifest.json" in refused(folder, "E0302")


def test_a_truncated_file_is_named(folder: Path) -> None:
    text = (folder / "program.json").read_text()
    (folder / "program.json").write_text(text[: len(text) // 2])
    assert "program.json" in refused(folder, "E0303")


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "remarks.json").unlink()
    assert "'remarks.json' is missing" in refused(folder, "E0302")


def test_one_changed_byte_in_any_file_is_named(folder: Path) -> None:
    for name in ("program.json", "ir.mlir", "remarks.json", "reference.json"):
        before = (folder / name).read_text()
        (folder / name).write_text(before + " ")
        assert name in refused(folder, "E0303")
        (folder / name).write_text(before)
    Program.load(folder)


def test_a_changed_manifest_is_named(folder: Path) -> None:
    edit_manifest(folder, seal=False, mesh=[["tp", 4]])
    assert "manifest.json" in refused(folder, "E0303")


def test_weights_put_there_later_are_an_alteration(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"x")
    assert "weights.safetensors" in refused(folder, "E0303")


def test_a_newer_format_is_refused_before_anything_else_is_read(folder: Path) -> None:
    edit_manifest(folder, seal=True, format=99, surprise=1)
    assert "format 99" in refused(folder, "E0304")


def test_an_op_outside_the_table_is_refused(folder: Path) -> None:
    text = (folder / "program.json").read_text()
    for name in ("os.system.default", "aten.no_such_op.default", "aten.mm.__class__", "aten.mm", "builtin.exec.x"):
        rewrite(folder, "program.json", text.replace("aten.mm.default", name, 1))
        assert f"'{name}'" in refused(folder, "E0305")


def test_an_op_that_writes_to_its_argument_is_refused(folder: Path) -> None:
    text = (folder / "program.json").read_text()
    rewrite(folder, "program.json", text.replace("aten.mul.Tensor", "aten.mul_.Tensor", 1))
    assert "writes to its argument" in refused(folder, "E0305")


def test_files_that_are_not_what_they_should_be_are_refused(folder: Path) -> None:
    text = (folder / "program.json").read_text()
    rewrite(folder, "program.json", '{"inputs": 3}')
    assert "program.json" in refused(folder, "E0306")
    rewrite(folder, "program.json", text.replace('"slots":13', '"slots":"13"'))
    assert "expected an integer" in refused(folder, "E0306")
    rewrite(folder, "program.json", text)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit_manifest(folder, seal=True, files={**files, "../secret": "0"})
    assert "../secret" in refused(folder, "E0306")


def test_a_malformed_reference_is_refused_when_it_is_needed(folder: Path) -> None:
    rewrite(folder, "reference.json", '{"inputs": []}')
    with pytest.raises(ProgramError) as caught:
        _ = Program.load(folder).single_device
    assert caught.value.code == "E0306"


def test_weights_that_are_no_safetensors_are_refused(folder: Path) -> None:
    rewrite(folder, "weights.safetensors", "not a weights file")
    with pytest.raises(ProgramError) as caught:
        _ = Program.load(folder).weights
    assert caught.value.code == "E0302"


def test_without_safetensors_the_error_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(folder, "weights.safetensors", "x")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ProgramError) as caught:
        _ = Program.load(folder).weights
    assert caught.value.code == "E0308"
    assert "pip install safetensors" in caught.value.render()


def test_saving_over_what_is_not_a_program_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "thesis"
    target.mkdir()
    (target / "chapter1.txt").write_text("years of work")
    with pytest.raises(ProgramError) as caught:
        linear().save(target)
    assert caught.value.code == "E0307"
    assert [path.name for path in target.iterdir()] == ["chapter1.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_saving_over_a_file_a_foreign_manifest_or_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text('{"format": 1}')
    for name in ("file", "empty", "app"):
        with pytest.raises(ProgramError) as caught:
            linear().save(tmp_path / name)
        assert caught.value.code == "E0307"


def test_saving_over_a_program_replaces_it(folder: Path) -> None:
    linear(width=6).save(folder)
    assert Program.load(folder).inputs[0].shape == (6, 3)
    assert [path.name for path in folder.parent.iterdir()] == ["program"]


def test_a_write_that_fails_leaves_the_old_program_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*unused: object, **named: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("stretto.runtime.program.folder.manifest_hash", full)
    with pytest.raises(ProgramError, match=r"E0508.*no space"):
        linear(width=6).save(folder)
    monkeypatch.undo()
    assert Program.load(folder).inputs[0].shape == (4, 3)
    assert [path.name for path in folder.parent.iterdir()] == ["program"]


def test_a_swap_that_fails_puts_the_old_program_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def second_fails(source: Path, target: Path) -> None:
        if source.name == "new":
            raise OSError("gone")
        rename(source, target)

    monkeypatch.setattr("os.rename", second_fails)
    with pytest.raises(ProgramError, match=r"E0508.*gone"):
        linear(width=6).save(folder)
    monkeypatch.undo()
    assert Program.load(folder).inputs[0].shape == (4, 3)


def test_weights_that_are_exchanged_after_the_folder_was_opened_are_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    from safetensors.torch import save_file

    program = replace(linear(), initial={"w": torch.ones(3)})
    program.save(tmp_path / "p")
    opened, again = Program.load(tmp_path / "p"), Program.load(tmp_path / "p")
    assert torch.equal(opened.weights["w"], torch.ones(3))
    save_file({"w": torch.full((3,), 6.0)}, tmp_path / "p" / "weights.safetensors")
    with pytest.raises(ProgramError) as caught:
        _ = again.weights
    assert caught.value.code == "E0303"
    (tmp_path / "p" / "weights.safetensors").unlink()
    with pytest.raises(ProgramError, match="is missing") as caught:
        _ = again.weights
    assert caught.value.code == "E0302"


def test_weights_that_are_put_into_a_folder_without_weights_are_refused(folder: Path) -> None:
    from safetensors.torch import save_file

    program = Program.load(folder)
    save_file({"w": torch.ones(3)}, folder / "weights.safetensors")
    with pytest.raises(ProgramError) as caught:
        _ = program.weights
    assert caught.value.code == "E0303"


@pytest.mark.parametrize("name", ["manifest.json", "program.json", "ir.mlir"])
def test_a_file_that_never_ends_is_no_file_of_a_program(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    refused(folder, "E0301" if name == "manifest.json" else "E0302")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, "E0301" if name == "manifest.json" else "E0302")


def test_a_giant_file_is_refused_before_it_is_read(folder: Path) -> None:
    for name in ("program.json", "manifest.json"):
        os.truncate(folder / name, 1 << 40)
        assert "larger than 128 MiB" in refused(folder, "E0302")


def test_a_file_of_too_many_values_is_refused_before_it_is_decoded(folder: Path) -> None:
    rewrite(folder, "remarks.json", "[" + "[]," * (1 << 23) + "1]")
    assert "more than 8388608 values" in refused(folder, "E0302")
