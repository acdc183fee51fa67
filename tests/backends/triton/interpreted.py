"""Run generated kernels in Triton's interpreter, beside float64: `TRITON_INTERPRET=1 python interpreted.py FIRST LAST`.

Prints one JSON object: how many random regions of these seeds were right, and what is wrong with the others.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from random_regions import random_region, run
from regions import CASES, named
from stretto.backends.triton.blocks import block_space
from stretto.backends.triton.kernels import compile_region, is_interpreted
from stretto.backends.triton.region import Declined, Region
from torch import Tensor

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float64: 1e-11}
"""Per unit of the value: of a 16-bit result the interpreter cuts the last bits off instead of rounding."""
MARGIN = 64
"""Elements around each output that no kernel may write."""


def poisoned(like: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor of this shape full of values that no kernel computes, and the larger one around it."""
    poison = float("nan") if like.dtype.is_floating_point else 77 if like.dtype is not torch.bool else True
    around = torch.full((like.numel() + 2 * MARGIN,), poison, dtype=like.dtype)
    return around[MARGIN : MARGIN + like.numel()].view(like.shape), around


def problem(region: Region, inputs: Sequence[Tensor], folder: Path, choice: int = 0) -> str:
    """What is wrong with the kernel of a region; empty if nothing. Raises Declined."""
    compiled = compile_region(region, "cuda:90", folder)
    space = block_space(compiled.kernel)
    compiled = compile_region(region, "cuda:90", folder, space[choice % len(space)])
    expected = run(region, inputs, raised=True)
    scale = max([1.0, *(float(v.abs().max()) for v in expected.values() if v.dtype is torch.float64 and v.numel())])
    outputs = [poisoned(compiled.empty(slot, torch.device("cpu"))) for slot in region.outputs]
    compiled.write(inputs, [inner for inner, _ in outputs])
    for slot, (inner, around) in zip(region.outputs, outputs, strict=True):
        outside = torch.cat([around[:MARGIN], around[-MARGIN:]])
        if around.dtype.is_floating_point and not outside.isnan().all():
            return f"slot {slot}: written outside its memory"
        reference = expected[slot].double()
        allowed = ROUNDING.get(inner.dtype, 0.0) * reference.abs() + 1e-5 * scale * bool(inner.dtype.is_floating_point)
        wrong = ~((inner.double() - reference).abs() <= allowed)
        if bool(wrong.any()):
            worst = float((inner.double() - reference).abs().nan_to_num(float("inf")).max())
            return f"slot {slot}: {int(wrong.sum())} of {wrong.numel()} elements differ, by up to {worst:.3g}"
    return ""


def wrong_with(seed: int, folder: Path) -> str | None:
    """What is wrong with the kernel of a random region; None for one that is declined."""
    region, inputs = random_region(seed)
    try:
        return problem(region, inputs, folder, seed)
    except Declined:
        return None
    except Exception as error:  # of Triton's own: a kernel that does not compile is wrong too
        return f"{type(error).__name__}: {error}"


def main(first: int, last: int) -> dict[str, object]:
    """Random regions of these seeds, and the regions of models."""
    assert is_interpreted()
    with tempfile.TemporaryDirectory() as folder:
        found = {seed: wrong_with(seed, Path(folder)) for seed in range(first, last)}
        cases = {name: problem(*named(name), Path(folder), choice) for choice, name in enumerate(CASES)}
    wrong = {seed: text for seed, text in found.items() if text}
    declined = sum(text is None for text in found.values())
    right = last - first - len(wrong) - declined
    return {"right": right, "wrong": wrong, "declined": declined, "wrong cases": {n: t for n, t in cases.items() if t}}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
