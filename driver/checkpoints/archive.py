"""Entries of a checkpoint, which `torch.save` writes, read as data: bytes are copied, nothing is unpickled."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping
from typing import IO

import torch
from torch import Tensor

from .pickle_data import Call, Damaged, Name, NotData, Persistent, read_pickle

_STORAGES: Mapping[str, torch.dtype] = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
_MOST_LEVELS = 32
"""Accepted nesting of containers in an entry."""


def read_entry(file: IO[bytes]) -> object:
    """The value of an entry: a tensor on the CPU, or scalars, strings and containers of them.

    Raises Damaged and NotData.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1:
                raise Damaged("it is no archive of torch.save")
            folder = names[0].removesuffix("data.pkl")
            return _Entry(archive, folder).value(read_pickle(_record(archive, names[0])), 0)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, LookupError) as error:
        raise Damaged(str(error)) from None


class _Entry:
    """One archive, and the values in it."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive = archive
        self._folder = folder

    def value(self, read: object, level: int) -> object:
        """The value that a pickle's data stand for."""
        if level > _MOST_LEVELS:
            raise NotData(f"it is nested more than {_MOST_LEVELS} levels deep")
        match read:
            case None | bool() | int() | float() | str() | bytes():
                return read
            case list() | tuple():
                items = [self.value(item, level + 1) for item in read]
                return items if isinstance(read, list) else tuple(items)
            case dict():
                return {_key(key): self.value(item, level + 1) for key, item in read.items()}
            case Call():
                return self._built(read, level)
            case Name("torch"):
                return _dtype(read)
        raise NotData(f"it holds {read if isinstance(read, Name) else type(read).__name__}")

    def _built(self, call: Call, level: int) -> object:
        match call.function, call.arguments:
            case Name("torch._utils", "_rebuild_tensor_v2"), (storage, offset, size, stride, _, _, *_):
                return self._tensor(storage, None, offset, size, stride)
            case Name("torch._utils", "_rebuild_tensor_v3"), (storage, offset, size, stride, _, _, dtype, *_):
                return self._tensor(storage, _dtype(dtype), offset, size, stride)
            case Name("torch._utils", "_rebuild_parameter"), (Call() as tensor, _, _):
                return self._built(tensor, level)
            case Name("torch", "Size"), (tuple() as size,):
                return torch.Size(_sizes(size))
            case Name("collections", "OrderedDict"), ():
                return self.value(call.state or {}, level)
        raise NotData(f"it holds {call}")

    def _tensor(
        self, storage: object, dtype: torch.dtype | None, offset: object, size: object, stride: object
    ) -> Tensor:
        match storage:
            case Persistent(("storage", Name(module, name), str(key), str(), int())):
                kind = torch.uint8 if (module, name) == ("torch.storage", "UntypedStorage") else _storage_dtype(name)
            case _:
                raise NotData("a tensor has no storage")
        data = bytearray(_record(self._archive, f"{self._folder}data/{key}"))
        if self._byte_order() != sys.byteorder:
            raise NotData(f"its numbers are {self._byte_order()}-endian")
        sizes, strides = _sizes(size), _sizes(stride)
        dtype = dtype or kind
        if not data:
            return torch.empty(sizes, dtype=dtype) if 0 in sizes else _too_short()
        if type(offset) is not int or len(sizes) != len(strides):
            raise NotData("a tensor's strides do not fit its size")
        elements = torch.frombuffer(data, dtype=dtype)
        return elements.as_strided(sizes, strides, offset)  # refuses what lies outside of the storage

    def _byte_order(self) -> str:
        name = f"{self._folder}byteorder"
        return _record(self._archive, name).decode("ascii") if name in self._archive.namelist() else sys.byteorder


def _record(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of the archive. torch does not compress them, so that none is larger than the archive itself."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise NotData(f"'{name}' in it is compressed")
    return archive.read(info)


def _key(key: object) -> str | int:
    if not isinstance(key, str | int):
        raise NotData(f"a key is of type {type(key).__name__}")
    return key


def _dtype(read: object) -> torch.dtype:
    dtype = vars(torch).get(read.name) if isinstance(read, Name) and read.module == "torch" else None
    if not isinstance(dtype, torch.dtype):
        raise NotData(f"it holds {read}")
    return dtype


def _storage_dtype(name: str) -> torch.dtype:
    if name not in _STORAGES:
        raise NotData(f"it holds a torch.{name}")
    return _STORAGES[name]


def _sizes(read: object) -> tuple[int, ...]:
    if not isinstance(read, tuple) or not all(type(number) is int and number >= 0 for number in read):
        raise NotData("a size or stride is not a tuple of numbers")
    return read


def _too_short() -> Tensor:
    raise Damaged("a tensor's storage is too short")
