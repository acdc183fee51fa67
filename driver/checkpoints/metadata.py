"""A checkpoint's `.metadata`, read as data: torch's records of it are built here, from checked fields."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from .pickle_data import Call, Name, NotData, read_pickle

_METADATA = "torch.distributed.checkpoint.metadata"
_FILESYSTEM = "torch.distributed.checkpoint.filesystem"
_LONGEST_SHAPE = 64


def metadata_of(data: bytes) -> Metadata:
    """The metadata that a file holds: names, shapes, and where each part is stored. Raises Damaged and NotData."""
    fields = _fields(read_pickle(data), _METADATA, "Metadata")
    entries = {_text(name): _entry(entry) for name, entry in _mapping(fields, "state_dict_metadata").items()}
    stored = {_index(index): _storage(place) for index, place in _mapping(fields, "storage_data").items()}
    return Metadata(entries, storage_data=stored)


def _entry(read: object) -> TensorStorageMetadata | BytesStorageMetadata:
    if isinstance(read, Call) and read.function == Name(_METADATA, "BytesStorageMetadata"):
        return BytesStorageMetadata()
    fields = _fields(read, _METADATA, "TensorStorageMetadata")
    chunks = fields.get("chunks")
    if not isinstance(chunks, list):
        raise NotData("a tensor has no list of chunks")
    return TensorStorageMetadata(
        TensorProperties(dtype=_dtype(fields.get("properties"))),
        _shape(fields.get("size")),
        [_chunk(c) for c in chunks],
    )


def _chunk(read: object) -> ChunkStorageMetadata:
    fields = _fields(read, _METADATA, "ChunkStorageMetadata")
    return ChunkStorageMetadata(_shape(fields.get("offsets")), _shape(fields.get("sizes")))


def _index(read: object) -> MetadataIndex:
    fields = _fields(read, _METADATA, "MetadataIndex")
    offset, index = fields.get("offset"), fields.get("index")
    if index is not None and type(index) is not int:
        raise NotData("the index of a part is no number")
    return MetadataIndex(_text(fields.get("fqn")), None if offset is None else _shape(offset), index)


def _storage(read: object) -> _StorageInfo:
    """Where a part is stored: in a file of the checkpoint's folder, and nowhere else."""
    fields = _fields(read, _FILESYSTEM, "_StorageInfo")
    path, offset, length = _text(fields.get("relative_path")), fields.get("offset"), fields.get("length")
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\0" in path:
        raise NotData(f"the path '{path}' is outside of its folder")
    if not (type(offset) is int and type(length) is int and offset >= 0 and length >= 0):
        raise NotData("an offset or a length is no number")
    if fields.get("transform_descriptors"):
        raise NotData("its entries are compressed")
    return _StorageInfo(path, offset, length)


def _fields(read: object, module: str, name: str) -> Mapping[str, object]:
    """The fields of a record of a class."""
    if not isinstance(read, Call) or read.function != Name(module, name):
        raise NotData(f"expected a {name}, found {read if isinstance(read, Call | Name) else type(read).__name__}")
    match read.state:
        case None:
            return {}
        case dict() as state if all(isinstance(key, str) for key in state):
            return state
    raise NotData(f"a {name} has no fields")


def _mapping(fields: Mapping[str, object], key: str) -> Mapping[object, object]:
    value = fields.get(key)
    if not isinstance(value, dict):
        raise NotData(f"it has no '{key}'")
    return value


def _shape(read: object) -> torch.Size:
    match read:
        case Call(Name("torch", "Size"), (tuple() as sizes,)) if all(type(n) is int and n >= 0 for n in sizes):
            return torch.Size(sizes[:_LONGEST_SHAPE])
    raise NotData("a shape is no torch.Size")


def _dtype(properties: object) -> torch.dtype:
    """The dtype, the first of a tensor's properties; the others are out of use."""
    match properties:
        case Call(Name(_, "TensorProperties"), _, (Name("torch", name), *_)):
            dtype = vars(torch).get(name)
            if isinstance(dtype, torch.dtype):
                return dtype
    raise NotData("a tensor has no dtype")


def _text(read: object) -> str:
    if not isinstance(read, str):
        raise NotData(f"expected a name, found {type(read).__name__}")
    return read
