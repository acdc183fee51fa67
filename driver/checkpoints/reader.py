"""How torch's loader reads a checkpoint's files: as data, or with torch's own readers where the caller trusts them."""

from __future__ import annotations

import io
from collections import defaultdict
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from ...diagnostics import StrettoError
from .archive import read_entry
from .metadata import metadata_of
from .pickle_data import MOST_BYTES, NotData

METADATA = ".metadata"


def reader_of(path: Path, *, trusted: bool) -> tuple[FileSystemReader, DefaultLoadPlanner]:
    """The reader and planner for torch's `load`; where the checkpoint is `trusted`, those of torch, which unpickle."""
    return (FileSystemReader(path), DefaultLoadPlanner()) if trusted else (DataReader(path), _DataPlanner())


class DataReader(FileSystemReader):
    """Reads a checkpoint's metadata and entries as data. Raises StrettoError E0619 for more than data, and Damaged."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """See `StorageReader`."""
        with open(Path(self.path) / METADATA, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        try:
            metadata = metadata_of(data)
        except NotData as error:
            raise no_data(Path(self.path), f"'{METADATA}'", error) from None
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """See `StorageReader`."""
        items: defaultdict[str, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            items[self.storage_data[item.storage_index].relative_path].append(item)
        for name, items_of_file in items.items():
            with open(Path(self.path) / name, "rb") as file:
                for item in items_of_file:
                    self._read(item, file, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read(self, item: ReadItem, file: io.BufferedReader, planner: LoadPlanner) -> None:
        place = self.storage_data[item.storage_index]
        file.seek(place.offset)
        data = io.BytesIO(file.read(place.length))
        try:
            if item.type == LoadItemType.BYTE_IO:
                planner.load_bytes(item, data)
            else:
                _fill(item, read_entry(data), planner)
        except NotData as error:
            raise no_data(Path(self.path), f"'{item.storage_index.fqn}'", error) from None


class _DataPlanner(DefaultLoadPlanner):
    """Puts values that are no tensors into the state dict; torch's own planner would unpickle them."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """See `LoadPlanner`. Raises NotData."""
        *outer, last = self.mappings[read_item.dest_index.fqn]
        container: Any = self.original_state_dict
        for key in outer:
            container = container[key]
        container[last] = read_entry(value)


def no_data(path: Path, where: str, error: NotData) -> StrettoError:
    """The error for a checkpoint that cannot be read without unpickling it."""
    return StrettoError(
        "E0619",
        f"'{path}' cannot be read as data: in {where}, {error}",
        expected="names, shapes, tensors, numbers, strings, lists and dicts",
        help="load an earlier one; torch's own reader runs whatever code the checkpoint names: "
        "load_checkpoint(..., trusted=True) uses it",
    )


def _fill(item: ReadItem, value: object, planner: LoadPlanner) -> None:
    """Copy the part of a stored tensor that an item names into its target."""
    ends = [start + extent for start, extent in zip(item.storage_offsets, item.lengths, strict=True)]
    if not isinstance(value, Tensor) or value.dim() != len(ends):
        raise NotData("it is no tensor of the shape that the metadata says")
    if any(end > extent for end, extent in zip(ends, value.shape, strict=True)):
        raise NotData(f"it has shape {list(value.shape)}, less than the metadata says")
    window = value[tuple(slice(start, end) for start, end in zip(item.storage_offsets, ends, strict=True))]
    target = planner.resolve_tensor(item).detach()
    if target.shape != window.shape:
        raise NotData(f"it has shape {list(window.shape)}, expected {list(target.shape)}")
    target.copy_(window)
    planner.commit_tensor(item, target)
