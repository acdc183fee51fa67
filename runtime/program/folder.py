"""A program folder on disk: every hash is checked on reading, and writing is atomic."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ProgramError
from ..reading.folder_files import altered, json_of, read_file, sha256_of, text_of, unreadable
from ..reading.json_fields import Fields, Malformed
from .arguments import Json
from .versions import refuse_other_format

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
JSON_FILES = ("program.json", "remarks.json", "reference.json")
TEXT_FILES = ("ir.mlir",)
ENTRIES = "entries"
"""The key of a manifest of several entries, each in a folder of its name (`named_entries/`)."""
SIZES = "sizes.json"
"""Exists only for a program with named sizes."""


def read_files(folder: Path, hashed: str | None = None) -> tuple[dict[str, object], dict[str, object], str]:
    """The files' contents by name (JSON decoded), the manifest, and the program's hash. Checks all hashes.

    `hashed` is the SHA-256 of the manifest, where something states it. Raises ProgramError E0301 to E0306, E0319.
    """
    manifest = manifest_of(folder, hashed)
    sums, digest = sums_and_hash(manifest, folder)
    if ENTRIES in manifest:
        raise several_entries(folder, manifest)
    _check_names(folder, sums)
    contents = {name: read_file(folder, name, hashed=value) for name, value in sums.items() if name != WEIGHTS}
    if WEIGHTS in sums:
        check_weights(folder, sums[WEIGHTS])
    if manifest_hash(manifest) != digest:
        raise altered(folder, MANIFEST)
    decoders = {name: text_of if name in TEXT_FILES else json_of for name in contents}
    files = {name: decoders[name](data, folder / name) for name, data in contents.items()}
    return files, manifest, digest


def sums_and_hash(manifest: Mapping[str, object], folder: Path) -> tuple[dict[str, str], str]:
    """What a manifest states: the SHA-256 of each file by name, and its own hash. Raises ProgramError E0304, E0306."""
    refuse_other_format(manifest, folder)
    try:
        fields = Fields(manifest, MANIFEST)
        return {name: str(value) for name, value in fields.mapping("files").items()}, fields.string("hash")
    except Malformed as error:
        raise ProgramError("E0306", f"the program in '{folder}' is malformed: {error}") from None


def several_entries(folder: Path, manifest: Mapping[str, object]) -> ProgramError:
    """The error for a folder of several entries where the program of one is wanted."""
    listed = manifest[ENTRIES]
    names = [str(name) for name in listed] if isinstance(listed, list) else []
    return ProgramError(
        "E0319",
        f"'{folder}' has several entries: {', '.join(names)}",
        expected="the name of one",
        help=f"add --entry {names[0]}" if names else "compile the program again",
    )


def manifest_hash(manifest: Mapping[str, object]) -> str:
    """SHA-256 over the manifest without its own hash. The manifest has the hashes of all files, so this covers them."""
    hashed = {key: value for key, value in manifest.items() if key != "hash"}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def weights_hash(manifest: Mapping[str, object]) -> str:
    """The SHA-256 of the weights file by a manifest that was read; empty where the program has no weights."""
    return str(Fields(manifest, MANIFEST).mapping("files").get(WEIGHTS, ""))


def read_weights(folder: Path, hashed: str) -> dict[str, Tensor]:
    """The tensors of the weights file, whose SHA-256 is `hashed`, by name; none where the program has no such file.

    The file may have been exchanged since the folder was opened: the bytes that are hashed here are those that are
    used. Raises ProgramError E0302, E0303.
    """
    path = folder / WEIGHTS
    if not hashed:
        if path.exists():
            raise altered(folder, WEIGHTS)
        return {}
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError:
        raise _no_safetensors(f"'{path}' cannot be read") from None
    if not path.is_file():
        raise ProgramError("E0302", f"'{folder}' is truncated: '{WEIGHTS}' is missing")
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != hashed:
            raise altered(folder, WEIGHTS)
        return load(data)
    except OSError as error:
        raise unreadable(path, error) from None
    except SafetensorError as error:
        raise ProgramError("E0302", f"'{path}' is not a readable weights file: {error}") from None


@dataclass(frozen=True)
class WeightsFile:
    """A weights file that several programs share; it is read once."""

    folder: Path
    hash: str
    """Its SHA-256; empty where there is none."""

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """See `read_weights`."""
        return read_weights(self.folder, self.hash)


def check_weights(folder: Path, hashed: str) -> None:
    """Raise ProgramError E0302, E0303 unless the folder's weights file has this SHA-256."""
    if not (folder / WEIGHTS).is_file():
        raise ProgramError(
            "E0302", f"'{folder}' is truncated: '{WEIGHTS}' is missing", help="copy or compile the program again"
        )
    if sha256_of(folder / WEIGHTS) != hashed:
        raise altered(folder, WEIGHTS)


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """`fill` a folder beside `folder`, then rename it: an older program stays until all is on disk."""
    refuse_other_folder(folder)
    with _new_folder(folder) as work:
        fresh = work / "new"
        fresh.mkdir()
        fill(fresh)
        _swap(fresh, folder, work / "old")


def fill_folder(
    fresh: Path, manifest: Mapping[str, Json], texts: Mapping[str, str], weights: Mapping[str, Tensor]
) -> None:
    """Write the files of a program into an empty folder, the manifest with their hashes last."""
    for name, text in texts.items():
        (fresh / name).write_text(text, encoding="utf-8")
    if weights:
        write_weights(fresh / WEIGHTS, weights)
    seal(fresh, manifest, sorted(fresh.iterdir()))


def seal(fresh: Path, manifest: Mapping[str, Json], files: Sequence[Path]) -> None:
    """Write the manifest, with the SHA-256 of these files and its own hash."""
    sums: dict[str, Json] = {path.relative_to(fresh).as_posix(): sha256_of(path) for path in files}
    sealed = {**manifest, "files": sums}
    text = json.dumps({**sealed, "hash": manifest_hash(sealed)}, indent=1, allow_nan=False)
    (fresh / MANIFEST).write_text(text, encoding="utf-8")


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
        is_program = {"format", "files", "hash"} <= manifest_of(folder).keys()
    except ProgramError:
        is_program = False
    if not is_program or folder.is_symlink():
        raise ProgramError(
            "E0307",
            f"'{folder}' exists and is not a program folder; nothing was written",
            help="give another folder, or remove this one first",
        )


def manifest_of(folder: Path, hashed: str | None = None) -> dict[str, object]:
    """The decoded manifest, whose SHA-256 is `hashed` where that is given. Raises ProgramError E0301 to E0303."""
    if not (folder / MANIFEST).is_file():
        raise _no_program(folder)
    value = json_of(read_file(folder, MANIFEST, hashed=hashed), folder / MANIFEST)
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


def _check_names(folder: Path, sums: Mapping[str, str]) -> None:
    """Raise ProgramError unless the manifest lists the files of a program, and the folder has no others of them."""
    for name in (*JSON_FILES, *TEXT_FILES):
        if name not in sums:
            raise ProgramError(
                "E0306", f"the program in '{folder}' is malformed: its '{MANIFEST}' does not list '{name}'"
            )
    for name in sums:
        if name not in (*JSON_FILES, *TEXT_FILES, SIZES, WEIGHTS):
            raise ProgramError(
                "E0306", f"the program in '{folder}' is malformed: its '{MANIFEST}' lists the unknown file '{name}'"
            )
    for name in (WEIGHTS, SIZES):
        if name not in sums and (folder / name).exists():
            raise altered(folder, name)


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a weights file. Raises ProgramError E0308 where safetensors is not installed, OSError."""
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
