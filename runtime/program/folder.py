"""A program folder on disk: every hash is checked on reading, and writing is atomic."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
"""Exists only for a program with named sizes."""
_CHUNK_BYTES = 1 << 22
_MAX_DEPTH = 64
"""Accepted nesting of lists and objects in a file; compiled programs have about ten levels."""


def read_files(folder: Path, newest: int) -> tuple[dict[str, object], dict[str, object], str]:
    """The files' contents by name (JSON decoded), the manifest, and the program's hash. Checks all hashes.

    Raises ProgramError E0301 to E0306; `newest` is the newest format number that the caller reads.
    """
    manifest = _manifest(folder)
    version = manifest.get("format")
    if not isinstance(version, int):
        raise ProgramError("E0301", f"'{folder}' is not a program folder: its '{MANIFEST}' has no format number")
    if version > newest:
        raise ProgramError(
            "E0304",
            f"the program in '{folder}' has format {version}, but this version reads formats up to {newest}",
            help="install a newer stretto, or compile the program again with this one",
        )
    try:
        fields = Fields(manifest, MANIFEST)
        sums = {name: str(value) for name, value in fields.mapping("files").items()}
        digest = fields.string("hash")
    except Malformed as error:
        raise ProgramError("E0306", f"the program in '{folder}' is malformed: {error}") from None
    _check_sums(folder, sums)
    if manifest_hash(manifest) != digest:
        raise _altered(folder, MANIFEST)
    names = (*JSON_FILES, SIZES) if SIZES in sums else JSON_FILES
    files: dict[str, object] = {name: _json(folder, name) for name in names}
    files.update({name: _text(folder, name) for name in TEXT_FILES})
    return files, manifest, digest


def manifest_hash(manifest: Mapping[str, object]) -> str:
    """SHA-256 over the manifest without its own hash. The manifest has the hashes of all files, so this covers them."""
    hashed = {key: value for key, value in manifest.items() if key != "hash"}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of the weights file by name; empty where the program has no such file."""
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
    """Write the files into a folder beside `folder`, then rename: an older program stays until all is on disk."""
    refuse_other_folder(folder)
    with _new_folder(folder) as work:
        fresh = work / "new"
        fresh.mkdir()
        for name, text in texts.items():
            (fresh / name).write_text(text, encoding="utf-8")
        if weights:
            _write_weights(fresh / WEIGHTS, weights)
        sums: dict[str, Json] = {path.name: _sha256(path) for path in sorted(fresh.iterdir())}
        sealed = {**manifest, "files": sums}
        text = json.dumps({**sealed, "hash": manifest_hash(sealed)}, indent=1, allow_nan=False)
        (fresh / MANIFEST).write_text(text, encoding="utf-8")
        _swap(fresh, folder, work / "old")


def refuse_unwritable(folder: Path) -> None:
    """Raise ProgramError E0508 where no folder can be made beside `folder`: before a compile, not after it."""
    refuse_other_folder(folder)
    with _new_folder(folder):
        pass


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, whose parents are made. Raises ProgramError E0508 where writing fails."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        try:
            yield work
        finally:
            shutil.rmtree(work)
    except OSError as error:
        raise ProgramError(
            "E0508",
            f"'{folder}' cannot be written: {error.strerror or error}",
            help="give another folder, or free the disk; a program that was there is as it was",
        ) from None


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


def refuse_other_folder(folder: Path) -> None:
    """Raise ProgramError E0307 where `folder` exists and is no program folder, which a program would replace."""
    if not os.path.lexists(folder):
        return
    try:
        is_program = {"format", "files", "hash"} <= _manifest(folder).keys()
    except ProgramError:
        is_program = False
    if not is_program or folder.is_symlink():
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
        raise ProgramError("E0301", f"'{folder}' is not a program folder: its '{MANIFEST}' is not a JSON object")
    return value


def _no_program(folder: Path) -> ProgramError:
    """The error for a path without a manifest. Where the path does not exist, it proposes a program of similar name."""
    if folder.is_file():
        return ProgramError("E0301", f"'{folder}' is a file, not a program folder")
    if folder.is_dir():
        return ProgramError(
            "E0301",
            f"'{folder}' is not a program folder: it has no '{MANIFEST}'",
            help="a program folder is what `stretto compile ... -o DIR` writes",
        )
    programs = [path.parent.name for path in folder.parent.glob(f"*/{MANIFEST}")]
    similar = difflib.get_close_matches(folder.name, sorted(programs), 1)
    return ProgramError(
        "E0301",
        f"'{folder}' is not a program folder: it does not exist",
        help=f"did you mean '{folder.parent / similar[0]}'?" if similar else "`stretto compile ... -o DIR` writes one",
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
    """The decoded content of a JSON file. Raises ProgramError E0302, also for NaN and for too deep nesting."""
    try:
        value: object = json.loads(_text(folder, name), parse_constant=_refuse_constant)
        if _depth(value) > _MAX_DEPTH:
            raise RecursionError
    except RecursionError:
        reason = f"it is nested more than {_MAX_DEPTH} levels deep"
    except ValueError as error:
        reason = str(error)
    else:
        return value
    raise ProgramError(
        "E0302", f"'{folder / name}' is truncated or not JSON: {reason}", help="copy or compile the program again"
    )


def _depth(value: object) -> int:
    """How deep lists and objects are nested in `value`."""
    depth, level = 0, [value]
    while containers := [child for child in level if isinstance(child, (dict, list))]:
        depth += 1
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON value")


def _unreadable(path: Path, error: OSError) -> ProgramError:
    return ProgramError("E0302", f"'{path}' cannot be read: {error.strerror}")


def _check_sums(folder: Path, sums: Mapping[str, str]) -> None:
    for name in (*JSON_FILES, *TEXT_FILES):
        if name not in sums:
            raise ProgramError(
                "E0306", f"the program in '{folder}' is malformed: its '{MANIFEST}' does not list '{name}'"
            )
    for name, expected in sums.items():
        if name not in (*JSON_FILES, *TEXT_FILES, SIZES, WEIGHTS):
            raise ProgramError(
                "E0306", f"the program in '{folder}' is malformed: its '{MANIFEST}' lists the unknown file '{name}'"
            )
        if not (folder / name).is_file():
            raise ProgramError(
                "E0302", f"'{folder}' is truncated: '{name}' is missing", help="copy or compile the program again"
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
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise _unreadable(path, error) from None
    return digest.hexdigest()


def _write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise _no_safetensors("the program's weights cannot be written") from None
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}  # safetensors refuses tensors that share storage
    for name, tensor in weights.items():
        storage = tensor.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != tensor.numel() * tensor.element_size()
        seen.add(storage.data_ptr())
        separate[name] = (torch.clone(tensor.detach()) if shared else tensor.detach()).contiguous()
    from safetensors import SafetensorError

    try:
        save_file(separate, path)
    except SafetensorError as error:
        raise OSError(str(error)) from None


def _no_safetensors(failure: str) -> ProgramError:
    return ProgramError("E0308", f"{failure}: safetensors is not installed", help="pip install safetensors")
