"""The device of a rank, by the target that a program was compiled for."""

from __future__ import annotations

import os

import torch

from .errors import RunError

_CPU, _CUDA = "cpu", "cuda"


def device_of_rank(target: str) -> torch.device:
    """The device of this process's rank on a target: of cuda the GPU that the launcher's LOCAL_RANK names.

    E0364 where that is not there: no GPU, fewer GPUs than processes on the machine, or a target that nobody knows.
    """
    if target == _CPU:
        return torch.device(_CPU)
    if target != _CUDA:
        raise RunError("E0364", f'the program runs on the target "{target}"', expected="cpu or cuda")
    if not torch.cuda.is_available():
        built = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no GPU"
        raise RunError(
            "E0364",
            f'the program runs on the target "cuda", and {built}',
            help='run it on the CPU (`stretto run DIR --target cpu`, or `load_program(DIR, target="cpu")`), or take a '
            "machine with a GPU and a torch for CUDA",
        )
    own, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if own >= count:
        raise RunError(
            "E0364",
            f"process {own} of this machine has no GPU of its own: the machine has {count}",
            expected="one GPU for each process: NCCL takes no two ranks on one device",
            help=f"start at most {count} processes on this machine (torchrun --nproc-per-node {count})",
        )
    return torch.device(_CUDA, own)


def require_cpu(target: str) -> None:
    """Raise E0364 where ranks as threads cannot run a target: they share one process, and run on the CPU."""
    if target == _CPU:
        return
    device_of_rank(target)
    raise RunError(
        "E0364",
        f'the program runs on the target "{target}", and ranks as threads run on the CPU',
        help="start one process for each rank, with --ranks processes or torchrun; or run it with --target cpu",
    )
