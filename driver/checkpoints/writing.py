"""A checkpoint folder is written whole or not at all: to a temporary folder, which then takes its place.

All processes write their parts. What fails in one of them fails in all, with the rank and the reason, and the temporary
folder is removed.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from ...diagnostics import StrettoError
from ...runtime.processes.world import watched
from ..state.state_tensors import write_alone


def write_folder(path: Path, state: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Write a checkpoint of `state`, with text files beside it. Raises StrettoError E0508 in all processes."""
    partial = path.with_name(f".{path.name}.partial")

    def begin() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8")

    write_alone(_writing(path, partial, begin))
    with one_process_is_meant(), watched("writing the checkpoint"):
        try:
            save(
                dict(state), storage_writer=FileSystemWriter(partial, overwrite=True), no_dist=not dist.is_initialized()
            )
            failures: dict[int, BaseException] = {}
        except CheckpointException as error:
            failures = {rank: failure for rank, (failure, _) in error.failures.items()}
        except OSError as error:
            failures = {0: error}

    def finish() -> None:
        if failures:
            raise OSError(_reasons(failures))
        _replace_folder(partial, path)

    write_alone(_writing(path, partial, finish))


def _writing(path: Path, partial: Path, write: Callable[[], None]) -> Callable[[], None]:
    """`write`, whose failure is E0508 and leaves no temporary folder."""

    def written() -> None:
        try:
            write()
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise StrettoError(
                "E0508",
                f"'{path}' cannot be written: {error.strerror or error}",
                help="free the disk or choose another place; an earlier checkpoint of this name is as it was",
            ) from None

    return written


def _reasons(failures: Mapping[int, BaseException]) -> str:
    """What failed on which rank: each reason once."""
    ranks: dict[str, list[int]] = {}
    for rank, failure in sorted(failures.items()):
        reason = failure.strerror if isinstance(failure, OSError) and failure.strerror else str(failure)
        ranks.setdefault(reason.splitlines()[0] if reason else type(failure).__name__, []).append(rank)
    if not dist.is_initialized():
        return "; ".join(ranks)
    return "; ".join(f"rank {', '.join(map(str, numbers))}: {reason}" for reason, numbers in ranks.items())


@contextmanager
def one_process_is_meant() -> Iterator[None]:
    """Inside, torch does not warn that a single process saves: with ranks as threads it holds everything."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _replace_folder(fresh: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.rename(path, old)
    os.rename(fresh, path)
    shutil.rmtree(old, ignore_errors=True)
