"""A program folder on disk: read with every hash checked, written whole or not at all."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ProgramError
from .arguments import Json
from .json_fields import Fields, Malformed

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
JSON_FILES = ("program.json", "remarks.json", "reference.json")
TEXT_FILES = ("ir.mlir",)
SIZES = "sizes.json"
"""There where a program has named sizes."""
_CHUNK_BYTES = 1 << 22
_DEEPEST = 64
"""Levels of lists and objects inside each other that a file may have; ours have about ten."""


def read_files(folder: Path, newest: int) -> tuple[dict[str, object], dict[str, object], str]:
    """The files' contents by name (JSON decoded), the manifest, and the program's hash; all hashes are checked."""
    manifest = _manifest(folder)
    written = manifest.get("format")
    if not isinstance(written, int):
        raise ProgramError("E0301", f"'{folder}' is not a program folder: its {MANIFEST} has no format number")
    if written > newest:
        raise ProgramError(
            "E0304",
            f"the program in '{folder}' has format {written}, this version reads up to {newest}",
            help="install a newer stretto, or compile the program again with this one",
        )
    try:
        fields = Fields(manifest, MANIFEST)
        sums = {name: str(value) for name, value in fields.mapping("files").items()}
        digest = fields.text("hash")
    except Malformed as error:
        raise ProgramError("E0306", f"the program in '{folder}' is malformed: {error}") from None
    _check_sums(folder, sums)
    if whole_hash(manifest) != digest:
        raise _altered(folder, MANIFEST)
    there = (*JSON_FILES, SIZES) if SIZES in sums else JSON_FILES
    files: dict[str, object] = {name: _json(folder, name) for name in there}
    files.update({name: _text(folder, name) for name in TEXT_FILES})
    return files, manifest, digest


def whole_hash(manifest: Mapping[str, object]) -> str:
    """SHA-256 over the manifest without its hash, and so over the hashes of all files."""
    rest = {key: value for key, value in manifest.items() if key != "hash"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of the weights file by name; empty when the program has none."""
    if not (folder / WEIGHTS).exists():
        return {}
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise _no_safetensors(f"'{folder / WEIGHTS}' cannot be read") from None
    try:
        return load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ProgramError("E0302", f"'{folder / WEIGHTS}' is not a readable weights file: {error}") from None


def write_folder(
    folder: Path, manifest: Mapping[str, Json], texts: Mapping[str, str], weights: Mapping[str, Tensor]
) -> None:
    """Write beside `folder`, then rename: what was there stays until everything is on disk."""
    refuse_what_is_not_ours(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        fresh = work / "new"
        fresh.mkdir()
        for name, text in texts.items():
            (fresh / name).write_text(text, encoding="utf-8")
        if weights:
            _write_weights(fresh / WEIGHTS, weights)
        sums: dict[str, Json] = {each.name: _sha256(each) for each in sorted(fresh.iterdir())}
        sealed = {**manifest, "files": sums}
        text = json.dumps({**sealed, "hash": whole_hash(sealed)}, indent=1, allow_nan=False)
        (fresh / MANIFEST).write_text(text, encoding="utf-8")
        _swap(fresh, folder, work / "old")
    finally:
        shutil.rmtree(work)


def _swap(fresh: Path, folder: Path, old: Path) -> None:
    if not folder.exists():
        os.rename(fresh, folder)
        return
    os.rename(folder, old)
    try:
        os.rename(fresh, folder)
    except OSError:
        os.rename(old, folder)
        raise


def refuse_what_is_not_ours(folder: Path) -> None:
    """Raise ProgramError E0307 where a program would replace something that is none."""
    if not os.path.lexists(folder):
        return
    try:
        ours = {"format", "files", "hash"} <= _manifest(folder).keys()
    except ProgramError:
        ours = False
    if not ours or folder.is_symlink():
        raise ProgramError(
            "E0307",
            f"'{folder}' exists and is not a program folder; nothing was written",
            help="give another folder, or remove this one first",
        )


def _manifest(folder: Path) -> dict[str, object]:
    if not (folder / MANIFEST).is_file():
        raise _no_program(folder)
    value = _json(folder, MANIFEST)
    if not isinstance(value, dict):
        raise ProgramError("E0301", f"'{folder}' is not a program folder: its {MANIFEST} is not an object")
    return value


def _no_program(folder: Path) -> ProgramError:
    """The error for a path without a manifest, with the program nearest in name where the path does not exist."""
    if folder.is_file():
        return ProgramError("E0301", f"'{folder}' is a file, not a program folder")
    if folder.is_dir():
        return ProgramError(
            "E0301",
            f"'{folder}' is not a program folder: it has no {MANIFEST}",
            help="a program folder is what `stretto compile ... -o DIR` writes",
        )
    programs = [each.parent.name for each in folder.parent.glob(f"*/{MANIFEST}")]
    near = difflib.get_close_matches(folder.name, sorted(programs), 1)
    return ProgramError(
        "E0301",
        f"'{folder}' is not a program folder: it does not exist",
        help=f"did you mean '{folder.parent / near[0]}'?" if near else "`stretto compile ... -o DIR` writes one",
    )


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ProgramError(
            "E0302",
            f"'{folder / name}' is not UTF-8 text (byte {error.start})",
            help="copy or compile the program again",
        ) from None
    except OSError as error:
        raise _unreadable(folder / name, error) from None


def _json(folder: Path, name: str) -> object:
    """A file's value. What is nested so deeply that reading it would exhaust the stack is refused, as NaN is."""
    try:
        value: object = json.loads(_text(folder, name), parse_constant=_no_constant)
        if _depth(value) > _DEEPEST:
            raise RecursionError
    except RecursionError:
        why = f"it is nested more than {_DEEPEST} levels deep"
    except ValueError as error:
        why = str(error)
    else:
        return value
    raise ProgramError(
        "E0302", f"'{folder / name}' is truncated or not JSON: {why}", help="copy or compile the program again"
    )


def _depth(value: object) -> int:
    """How many lists and objects are inside each other at the most."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, (dict, list))]:
        depth += 1
        level = [each for one in level for each in (one.values() if isinstance(one, dict) else one)]
    return depth


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON value")


def _unreadable(path: Path, error: OSError) -> ProgramError:
    return ProgramError("E0302", f"'{path}' cannot be read: {error.strerror}")


def _check_sums(folder: Path, sums: Mapping[str, str]) -> None:
    for name in (*JSON_FILES, *TEXT_FILES):
        if name not in sums:
            raise ProgramError("E0306", f"the program in '{folder}' is malformed: its {MANIFEST} does not list {name}")
    for name, expected in sums.items():
        if name not in (*JSON_FILES, *TEXT_FILES, SIZES, WEIGHTS):
            raise ProgramError("E0306", f"the program in '{folder}' is malformed: its {MANIFEST} lists '{name}'")
        if not (folder / name).is_file():
            raise ProgramError(
                "E0302", f"'{folder}' is truncated: {name} is missing", help="copy or compile the program again"
            )
        if _sha256(folder / name) != expected:
            raise _altered(folder, name)
    for name in (WEIGHTS, SIZES):
        if name not in sums and (folder / name).exists():
            raise _altered(folder, name)


def _altered(folder: Path, name: str) -> ProgramError:
    return ProgramError(
        "E0303",
        f"'{folder / name}' was altered or truncated after the program was compiled: its hash does not match",
        help="copy or compile the program again",
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(_CHUNK_BYTES):
                digest.update(piece)
    except OSError as error:
        raise _unreadable(path, error) from None
    return digest.hexdigest()


def _write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise _no_safetensors("the program's weights cannot be written") from None
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        storage = tensor.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != tensor.numel() * tensor.element_size()
        seen.add(storage.data_ptr())
        apart[name] = torch.clone(tensor.detach()) if shared else tensor.detach()
        apart[name] = apart[name].contiguous()
    save_file(apart, path)


def _no_safetensors(what: str) -> ProgramError:
    return ProgramError("E0308", f"{what}: safetensors is not installed", help="pip install safetensors")
