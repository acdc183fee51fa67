"""Real text that every Python has: the sources of its standard library, as bytes."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor


def standard_library(most: int = 4_000_000) -> Tensor:
    """The bytes of the standard library's top-level modules in the order of their names: (n,) int64, n <= `most`."""
    folder = Path(sysconfig.get_path("stdlib"))
    data = b"".join(file.read_bytes() for file in sorted(folder.glob("*.py")))
    return torch.frombuffer(bytearray(data[:most]), dtype=torch.uint8).long()


def windows(data: Tensor, batch: int, length: int, steps: int, seed: int) -> Iterator[Tensor]:
    """`steps` batches of windows that begin anywhere in the data, (batch, length); the seed decides which."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(0, len(data) - length, (batch, 1), generator=generator)
        yield data[starts + torch.arange(length)]
