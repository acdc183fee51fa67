"""The choice of a kernel's block sizes: measured once for a device, kept on disk, the same on all ranks."""

from __future__ import annotations

from collections.abc import Callable

from .blocks import Blocks, block_space
from .generate import Kernel
from .kernel_files import KernelFiles


def chosen_blocks(
    kernel: Kernel,
    files: KernelFiles,
    device: str,
    time: Callable[[Blocks], float],
    agree: Callable[[Blocks], Blocks] = lambda own: own,
) -> Blocks:
    """The quickest block sizes of the kernel's space: those kept for the device, else by measuring.

    `time` runs the kernel. `agree` gives every rank the choice of one: ranks measure unlike times, and sums in unlike
    blocks would differ in their last bits between replicas. All ranks must call this at the same point.
    """
    kept = files.blocks(kernel, device)
    chosen = agree(min(block_space(kernel), key=time) if kept is None else kept)
    if chosen != kept:
        files.keep_blocks(kernel, device, chosen)
    return chosen
