"""Compile a kernel for a GPU that is not there, and report what it takes: shared memory, registers, spills."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .blocks import Blocks
from .generate import Kernel
from .kernel_files import KernelFiles
from .kernels import load
from .region import Region

TARGETS = {"sm_90": ("cuda", 90, 32), "sm_100": ("cuda", 100, 32), "gfx942": ("hip", "gfx942", 64)}
"""By name: Triton's backend, architecture and warp size."""

_POINTERS = {
    "float64": "*fp64", "float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16", "int64": "*i64", "int32": "*i32",
    "int16": "*i16", "int8": "*i8", "uint8": "*u8", "bool": "*i1",
}  # fmt: skip


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes on one target."""

    target: str
    shared_bytes: int
    """Per program."""
    registers: int | None
    """Per thread; None where the toolkit does not say it."""
    spilled_bytes: int | None
    """Per thread, stores to local memory; None where the toolkit does not say it."""


def cross_compile(region: Region, kernel: Kernel, blocks: Blocks, target: str, folder: Path) -> Resources:
    """Compile a region's kernel for a target of `TARGETS`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = load(kernel.name, KernelFiles(folder).source(kernel))
    slots = [*kernel.inputs, *kernel.outputs]
    names = function.arg_names
    pointers = {names[i]: _POINTERS[region.types[slot].dtype] for i, slot in enumerate(slots)}
    sizes = {"BLOCK_ROWS": blocks.rows} | ({"BLOCK_COLUMNS": blocks.columns} if kernel.has_rows else {})
    signature = pointers | dict.fromkeys(sizes, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(slots))}
    source = ASTSource(function, signature, {(names.index(name),): size for name, size in sizes.items()}, aligned)
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options={"num_warps": blocks.warps})
    found = _of_amd(compiled.asm["amdgcn"]) if target.startswith("gfx") else _of_nvidia(compiled.asm["ptx"])
    return Resources(target, int(compiled.metadata.shared), *found)


def _of_amd(text: str) -> tuple[int | None, int | None]:
    registers, spilled = (_number(rf"\.{name}:\s*(\d+)", text) for name in ("vgpr_count", "vgpr_spill_count"))
    return registers, None if spilled is None else 4 * spilled


def _of_nvidia(assembly: str) -> tuple[int | None, int | None]:
    """As `ptxas` reports it, of those that come with Triton the one that knows the assembly's version."""
    import triton

    architecture = re.search(r"^\.target (\w+)", assembly, re.MULTILINE)
    for tool in sorted(Path(triton.__file__).parent.glob("backends/nvidia/bin/ptxas*")):
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
            file.write(assembly)
            file.flush()
            name = architecture[1] if architecture else ""
            command = [str(tool), "-v", f"--gpu-name={name}", file.name, "-o", os.devnull]
            listing = subprocess.run(command, capture_output=True, text=True, check=False).stderr
        registers = _number(r"Used (\d+) registers", listing)
        if registers is not None:
            return registers, _number(r"(\d+) bytes spill stores", listing)
    return None, None


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found[1]) if found else None
