"""Kernels and choices on disk: written once, never trusted."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from stretto.backends.triton.blocks import Blocks, block_space, default_blocks
from stretto.backends.triton.generate import Kernel, generate
from stretto.backends.triton.kernel_files import KernelFiles
from stretto.backends.triton.tuning import chosen_blocks

sys.path.insert(0, str(Path(__file__).parent))
from regions import CASES, named


@pytest.fixture
def kernel() -> Kernel:
    return generate(named("rms_norm")[0], "region_1")


@pytest.mark.parametrize("found", [b"", b"import os\nos.abort()\n", b"\xff\xfe", None])
def test_a_file_that_is_not_the_kernel_is_replaced(kernel: Kernel, tmp_path: Path, found: bytes | None) -> None:
    if found is not None:
        (tmp_path / "region_1.py").write_bytes(found)
    file = KernelFiles(tmp_path).source(kernel)
    assert file.read_text(encoding="utf-8") == kernel.source
    written = file.stat().st_mtime_ns
    assert KernelFiles(tmp_path).source(kernel).stat().st_mtime_ns == written
    assert [each.name for each in tmp_path.iterdir()] == ["region_1.py"]


def test_where_a_folder_cannot_be_written_the_kernel_lies_elsewhere(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    files = KernelFiles(tmp_path / "file" / "kernels")
    assert files.source(kernel).read_text(encoding="utf-8") == kernel.source
    files.keep_blocks(kernel, "gpu", default_blocks(kernel))
    assert files.blocks(kernel, "gpu") is None


def test_a_choice_is_kept_by_device(kernel: Kernel, tmp_path: Path) -> None:
    files, choice = KernelFiles(tmp_path), block_space(kernel)[-1]
    files.keep_blocks(kernel, "NVIDIA H200", choice)
    assert files.blocks(kernel, "NVIDIA H200") == choice
    assert files.blocks(kernel, "NVIDIA A100") is None


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", json.dumps({"version": 0, "blocks": {"rows": 1, "columns": 64, "warps": 2}}),
        json.dumps({"version": 1, "blocks": {"rows": 7}}), json.dumps({"version": 1, "blocks": {"x": 1}}),
        json.dumps({"version": 1, "blocks": {"rows": 1 << 40, "columns": 64, "warps": 2}}),
    ],
)  # fmt: skip
def test_what_is_no_choice_counts_as_none(kernel: Kernel, tmp_path: Path, text: str) -> None:
    files = KernelFiles(tmp_path)
    files.keep_blocks(kernel, "gpu", default_blocks(kernel))
    next(tmp_path.glob("*.blocks.json")).write_text(text)
    assert files.blocks(kernel, "gpu") is None


def test_ranks_take_the_choice_of_one_and_measure_once(kernel: Kernel, tmp_path: Path) -> None:
    """Two ranks on machines of their own, to which unlike block sizes are the quickest."""
    space, measured, first = block_space(kernel), Counter[int](), []
    assert len(space) > 1

    def choose(rank: int) -> Blocks:
        def time(blocks: Blocks) -> float:
            measured[rank] += 1
            return abs(space.index(blocks) - (len(space) - 1 if rank == 0 else 0))

        def agree(own: Blocks) -> Blocks:
            first.append(own)
            return first[0]

        return chosen_blocks(kernel, KernelFiles(tmp_path / str(rank)), "gpu", time, agree)

    assert [choose(0), choose(1)] == [space[-1], space[-1]]
    assert measured == {0: len(space), 1: len(space)}
    assert [choose(0), choose(1)] == [space[-1], space[-1]]
    assert measured == {0: len(space), 1: len(space)}


@pytest.mark.parametrize("name", CASES)
def test_block_sizes_are_powers_of_2_that_hold_a_row_unless_the_kernel_loops(name: str) -> None:
    kernel = generate(named(name)[0], "kernel")
    for blocks in block_space(kernel):
        assert all(size & (size - 1) == 0 for size in (blocks.rows, blocks.columns, blocks.warps))
        assert kernel.loops or blocks.columns >= kernel.columns
        assert isinstance(blocks, Blocks) and blocks.rows * blocks.columns <= 1 << 14
