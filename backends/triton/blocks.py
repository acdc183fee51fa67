"""Block sizes of a kernel: the small space that is tried, and the choice without a measurement."""

from __future__ import annotations

from dataclasses import dataclass

from .generate import MOST_COLUMNS_AT_ONCE, Kernel


@dataclass(frozen=True)
class Blocks:
    """Rows and columns of a tile, powers of 2, and the warps that compute it."""

    rows: int
    columns: int = 1
    warps: int = 4


def block_space(kernel: Kernel) -> tuple[Blocks, ...]:
    """The block sizes worth trying, the default one first."""
    if not kernel.has_rows:
        sizes = [(1024, 4), (512, 4), (2048, 8), (4096, 8)]
        return tuple(Blocks(size, 1, warps) for size, warps in sizes)
    if kernel.along_first:
        return tuple(Blocks(rows, columns, 4) for rows, columns in [(32, 64), (64, 32), (16, 128), (128, 32)])
    if kernel.loops:
        return tuple(Blocks(1, columns, warps) for columns, warps in [(2048, 8), (4096, 8), (1024, 4), (4096, 16)])
    columns = power_of_two(kernel.columns)
    warps = min(max(columns // 512, 2), 16)
    rows = max(1, 1024 // columns)
    several = [Blocks(rows, columns, warps), Blocks(1, columns, warps), Blocks(4 * rows, columns, 2 * warps)]
    most = [each for each in several if each.rows * each.columns <= 2 * MOST_COLUMNS_AT_ONCE and each.warps <= 16]
    return tuple(dict.fromkeys(most))


def default_blocks(kernel: Kernel) -> Blocks:
    """The block sizes that are taken without a measurement."""
    return block_space(kernel)[0]


def power_of_two(number: int) -> int:
    """The least power of 2 that is not smaller."""
    return 1 << max(number - 1, 0).bit_length()
