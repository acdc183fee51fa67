"""Load the source of a kernel and launch it on tensors."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...runtime.program.arguments import DTYPES
from .blocks import Blocks, default_blocks
from .generate import Kernel, generate
from .kernel_files import KernelFiles
from .region import Region

_ONE_AT_A_TIME = threading.Lock()
"""The interpreter swaps functions of Triton's language while a kernel runs, for all threads of the process."""


@dataclass(frozen=True)
class CompiledRegion:
    """A region whose kernel is loaded: callable with the region's inputs."""

    region: Region
    kernel: Kernel
    function: Any
    """What `triton.jit` made of the kernel."""
    blocks: Blocks

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Its outputs, in new tensors on the inputs' device. The kernel reads contiguous inputs: others are copied."""
        device = inputs[0].device if inputs else torch.device("cpu")
        outputs = tuple(self.empty(slot, device) for slot in self.region.outputs)
        self.write(inputs, outputs)
        return outputs

    def empty(self, slot: int, device: torch.device) -> Tensor:
        """Memory for a slot's tensor."""
        type_ = self.region.types[slot]
        return torch.empty(type_.shape, dtype=DTYPES[type_.dtype], device=device)

    def write(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Compute into `outputs`, which are contiguous."""
        by_slot: Mapping[int, Tensor] = dict(zip(self.region.inputs, inputs, strict=True))
        read = [by_slot[slot].contiguous() for slot in self.kernel.inputs]
        sizes: dict[str, int] = {"BLOCK_ROWS": self.blocks.rows}
        if self.kernel.has_rows:
            sizes["BLOCK_COLUMNS"] = self.blocks.columns
        grid = (-(-self.kernel.rows // self.blocks.rows),)
        with _ONE_AT_A_TIME if is_interpreted() else nullcontext():
            self.function[grid](*read, *outputs, **sizes, num_warps=self.blocks.warps)


def is_interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU, as `TRITON_INTERPRET=1` asks for."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def compile_region(region: Region, target: str, folder: Path, blocks: Blocks | None = None) -> CompiledRegion:
    """The region, ready to run on `target`, such as "cuda:90". Raises Declined where no kernel can be written."""
    kernel = generate(region, f"region_{region.digest(target)}")
    file = KernelFiles(folder).source(kernel)
    return CompiledRegion(region, kernel, load(kernel.name, file), blocks or default_blocks(kernel))


def load(name: str, file: Path) -> Any:
    """The kernel in a file, as an object of Triton's."""
    spec = importlib.util.spec_from_file_location(f"stretto_kernels.{name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)
