"""The device of a rank, by the target that a program was compiled for."""

from __future__ import annotations

import os
from math import prod

import torch

from .errors import RunError
from .program.arguments import DTYPES
from .program.program import Program
from .rank.shards import local_shape

_CPU, _CUDA = "cpu", "cuda"
_OLDEST = (8, 0)
"""The oldest compute capability of NVIDIA's that computes in bfloat16, and that Triton compiles for."""


def device_of_rank(target: str) -> torch.device:
    """The device of this process's rank on a target: of cuda the GPU that the launcher's LOCAL_RANK names.

    E0364 where that is not there: no GPU, fewer GPUs than processes on the machine, one of an older generation than
    programs are made for, or a target that nobody knows.
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
    _refuse_old(own)
    return torch.device(_CUDA, own)


def require_memory(program: Program, rank: int, device: torch.device) -> None:
    """Raise E0365 where the tensors that a rank's forward takes are more than its GPU has memory for.

    A step needs more than that: what passes here may still run out of memory.
    """
    if device.type != _CUDA:
        return
    needed = input_bytes(program, rank)
    total = torch.cuda.get_device_properties(device).total_memory
    if needed > total:
        raise RunError(
            "E0365",
            f"parameters, states and inputs of rank {rank} take {needed / 2**30:.2f} GiB, and its GPU {device.index} "
            f"has {total / 2**30:.2f} GiB",
            help="compile for a mesh with more ranks, or with a plan that shards more of them; `stretto verify DIR` "
            "says how much each rank needs",
        )


def input_bytes(program: Program, rank: int) -> int:
    """The bytes of the tensors that the forward of a rank takes, each as its part of it is stored."""
    taken = program.entry_of(rank).forward_inputs
    return sum(prod(local_shape(each.shape, each.shards)) * DTYPES[each.dtype].itemsize for each in taken)


def _refuse_old(index: int) -> None:
    """Refuse a GPU of NVIDIA's that is too old; AMD's have other numbers, and are left to torch."""
    if torch.version.hip is not None:
        return
    capability = torch.cuda.get_device_capability(index)
    if capability < _OLDEST:
        raise RunError(
            "E0364",
            f"GPU {index}, {torch.cuda.get_device_name(index)}, has the compute capability "
            f"{capability[0]}.{capability[1]}",
            expected=f"at least {_OLDEST[0]}.{_OLDEST[1]}, which computes in bfloat16 and which Triton compiles for",
            help="run it on the CPU (--target cpu), or take a newer GPU",
        )


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
