"""A checkpoint is read as data: whatever its files name, nothing is imported or called."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stretto
import torch
from stretto.driver.checkpoints.archive import read_entry
from stretto.driver.checkpoints.metadata import metadata_of
from stretto.driver.checkpoints.pickle_data import Call, Damaged, Name, NotData, read_pickle
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import MetadataIndex


class MakesFolder:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (self.folder,)


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    stretto.save_checkpoint(tmp_path / "one", model, optimizer)
    return tmp_path / "one", model, optimizer


def test_metadata_is_not_unpickled(checkpoint: tuple[Path, nn.Module, torch.optim.Optimizer], tmp_path: Path) -> None:
    path, model, _ = checkpoint
    mark = tmp_path / "ran"
    (path / ".metadata").write_bytes(pickle.dumps(MakesFolder(mark)))
    with pytest.raises(stretto.StrettoError, match=r"a call of posix\.mkdir") as caught:
        stretto.load_checkpoint(path, model)
    assert caught.value.code == "E0619" and "trusted=True" in caught.value.help
    assert not mark.exists()


def test_a_parameter_group_is_not_unpickled_unless_the_caller_trusts_the_checkpoint(
    checkpoint: tuple[Path, nn.Module, torch.optim.Optimizer], tmp_path: Path
) -> None:
    path, model, optimizer = checkpoint
    mark = tmp_path / "ran"
    data = next(path.glob("*.distcp"))
    metadata = FileSystemReader(path).read_metadata()
    place = metadata.storage_data[MetadataIndex("optimizer.param_groups.0.eps")]
    place.offset, place.length = data.stat().st_size, len(saved(MakesFolder(mark)))
    data.write_bytes(data.read_bytes() + saved(MakesFolder(mark)))
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    before = model.weight.detach().clone()
    with pytest.raises(stretto.StrettoError, match=r"in 'optimizer.param_groups.0.eps', it holds a call of") as caught:
        stretto.load_checkpoint(path, model, optimizer)
    assert caught.value.code == "E0619"
    assert not mark.exists() and torch.equal(model.weight, before)
    stretto.load_checkpoint(path, model, optimizer, trusted=True)
    assert mark.exists()


def test_a_trusted_checkpoint_is_read_as_any_other(
    checkpoint: tuple[Path, nn.Module, torch.optim.Optimizer],
) -> None:
    path, model, _ = checkpoint
    other = nn.Linear(4, 4)
    stretto.load_checkpoint(path, other, torch.optim.AdamW(other.parameters()), trusted=True)
    assert torch.equal(other.weight, model.weight)


@pytest.mark.parametrize(
    "value",
    [
        [{"lr": 0.1, "betas": (0.9, 0.999), "params": ["a", "b"], "foreach": None, "big": 1 << 80, "name": "é"}],
        {"set": [1, -1, 70000, True], "bytes in a list": [], "nested": {"a": {"b": [()]}}},
        torch.arange(6).reshape(2, 3).t(),
        torch.arange(6.0)[2:5],
        torch.ones(2, 2, dtype=torch.bfloat16),
        torch.ones(3).to(torch.float8_e4m3fn),
        torch.tensor([True, False]),
        torch.tensor(3.5, dtype=torch.float64),
        torch.zeros(0, 3),
        torch.tensor([1 + 2j]),
        nn.Parameter(torch.ones(2)),
        torch.Size([2, 3]),
        torch.float16,
        [torch.tensor(0.5), "text"],
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_torch_saves_is_read_without_unpickling(value: Any) -> None:
    read = read_entry(io.BytesIO(saved(value)))
    if isinstance(value, torch.Tensor):
        assert isinstance(read, torch.Tensor) and read.dtype == value.dtype and read.stride() == value.stride()
        assert torch.equal(read.to(torch.complex128), value.to(torch.complex128))
    else:
        assert read == value


@pytest.mark.parametrize(
    ("pickled", "kind"),
    [
        pytest.param(b"cposix\nsystem\n(X\x02\x00\x00\x00lstR", Damaged, id="cut off"),
        pytest.param(b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94b.", Damaged, id="a state without an object"),
        pytest.param(b"]r\xff\xff\xff\xff]b.", NotData, id="a state of a list"),
        pytest.param(b"\x80\x02cbuiltins\neval\n]b.", NotData, id="a list as state"),
        pytest.param(b"\x82\x01.", NotData, id="a registered extension"),
        pytest.param(b"(cposix\nsystem\no.", NotData, id="an object by its class"),
        pytest.param(b"(iposix\nsystem\n.", NotData, id="an instance by its class"),
        pytest.param(b"\x8e" + struct.pack("<Q", 1 << 40) + b".", Damaged, id="a text of 10^12 bytes"),
        pytest.param(b"]" * 99 + b"a" * 98, Damaged, id="without an end"),
        pytest.param(b"", Damaged, id="empty"),
    ],
)
def test_a_hostile_pickle_is_refused(pickled: bytes, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        read_pickle(pickled)


def test_a_call_in_a_pickle_is_a_record_of_it() -> None:
    call = read_pickle(pickle.dumps(MakesFolder(Path("never"))))
    assert isinstance(call, Call) and call.function == Name("posix", "mkdir") and call.arguments == ("never",)


def archive(**files: tuple[bytes, int]) -> io.BytesIO:
    """An archive as torch.save writes it: "data.pkl" and storages, each stored or compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        for name, (data, compression) in files.items():
            written.writestr(f"archive/{name.replace('__', '/').replace('pickle', 'data.pkl')}", data, compression)
    return file


def tensor_pickle(size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """The pickle of a tensor over a storage of float32 in record "0"."""
    text = saved(torch.zeros(7))
    with zipfile.ZipFile(io.BytesIO(text)) as read:
        pickled = read.read(next(name for name in read.namelist() if name.endswith("data.pkl")))
    assert b"K\x07\x85" in pickled and b"K\x01\x85" in pickled
    return pickled.replace(b"K\x07\x85", encoded(size)).replace(b"K\x01\x85", encoded(stride))


def encoded(numbers: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", number) for number in numbers) + b"t"


@pytest.mark.parametrize(
    ("size", "stride"),
    [((1 << 40,), (1,)), ((8,), (1,)), ((7, 1 << 30), (1, 1)), ((3,), (-1,)), ((-1,), (1,)), ((2,), (1, 1))],
)
def test_a_tensor_outside_of_its_storage_is_refused_before_memory_is_taken(
    size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    files = archive(pickle=(tensor_pickle(size, stride), zipfile.ZIP_STORED), data__0=(bytes(28), zipfile.ZIP_STORED))
    with pytest.raises((Damaged, NotData)):
        read_entry(files)
    whole = archive(pickle=(tensor_pickle((7,), (1,)), zipfile.ZIP_STORED), data__0=(bytes(28), zipfile.ZIP_STORED))
    assert isinstance(read_entry(whole), torch.Tensor)


def test_a_compressed_record_is_refused_because_it_may_be_larger_than_memory() -> None:
    bomb = archive(
        pickle=(tensor_pickle((7,), (1,)), zipfile.ZIP_STORED), data__0=(bytes(1 << 20), zipfile.ZIP_DEFLATED)
    )
    with pytest.raises(NotData, match="compressed"):
        read_entry(bomb)


def test_metadata_that_names_a_file_outside_of_the_folder_is_refused(
    checkpoint: tuple[Path, nn.Module, torch.optim.Optimizer],
) -> None:
    path = checkpoint[0]
    metadata = FileSystemReader(path).read_metadata()
    for outside in ("/etc/passwd", "../one/x", "a/../../b"):
        for place in metadata.storage_data.values():
            place.relative_path = outside
        with pytest.raises(NotData, match="outside of its folder"):
            metadata_of(pickle.dumps(metadata))


def test_metadata_is_read_as_torch_reads_it(checkpoint: tuple[Path, nn.Module, torch.optim.Optimizer]) -> None:
    path = checkpoint[0]
    expected, read = FileSystemReader(path).read_metadata(), metadata_of((path / ".metadata").read_bytes())
    assert read.state_dict_metadata == expected.state_dict_metadata
    assert read.storage_data == expected.storage_data
