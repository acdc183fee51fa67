"""Weights in safetensors files: one file, or a folder of them, read slice by slice."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...diagnostics import StrettoError

SUFFIX = ".safetensors"


class WeightFiles:
    """The tensors of all safetensors files at a path, by name; a context manager that keeps the files open.

    Raises StrettoError E0612 for a path without such files, and for a damaged file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._files = _weight_files(self.path)
        self._stack = ExitStack()

    def __enter__(self) -> WeightFiles:
        self._open_files  # noqa: B018 - opened here, so that a damaged file is found before the model is changed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._open_files))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return tuple(self._open_files[name].get_slice(name).get_shape())

    def read(self, name: str, window: Sequence[slice]) -> Tensor:
        """One window of a tensor; only that is read from the file."""
        window_tensor: Tensor = (
            self._open_files[name].get_slice(name)[tuple(window)] if window else self._open_files[name].get_tensor(name)
        )
        return window_tensor

    @cached_property
    def _open_files(self) -> Mapping[str, Any]:
        """The open file of each tensor; of two files with one name, the later."""
        open_files: dict[str, Any] = {}
        for file in self._files:
            if not file.is_file():
                raise _unreadable(file, "it is a device or a pipe")
            try:
                opened: Any = self._stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise _unreadable(file, str(error)) from None
            open_files.update(dict.fromkeys(opened.keys(), opened))
        return open_files


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a temporary file and rename it to `path`. Raises StrettoError E0508 if that fails."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            own = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
            save_file(own, partial, metadata={"format": "pt"})
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except (SafetensorError, OSError) as error:
        raise StrettoError("E0508", f"'{path}' cannot be written: {error}") from None


def window_of(shape: Sequence[int], offsets: Sequence[int]) -> tuple[slice, ...]:
    """The window of a global tensor that starts at `offsets` and has `shape`.

    >>> window_of((2, 3), (4, 0))
    (slice(4, 6, None), slice(0, 3, None))
    """
    return tuple(slice(start, start + extent) for start, extent in zip(offsets, shape, strict=True))


def _weight_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(path.glob(f"*{SUFFIX}"))
        if not files:
            raise StrettoError(
                "E0612",
                f"the folder '{path}' holds no weights",
                expected=f"files that end in {SUFFIX}",
                help="name a safetensors file or a folder of them; a checkpoint is read with stretto.load_checkpoint",
            )
        return files
    if not path.exists():
        raise StrettoError("E0612", f"there is no file or folder '{path}'", help="write one with stretto.save_weights")
    return [path]


def _unreadable(file: Path, why: str) -> StrettoError:
    return StrettoError(
        "E0612",
        f"'{file}' is no safetensors file, or a damaged one: {why}",
        help="download or write the file again; read other formats with torch.load and model.load_state_dict",
    )
