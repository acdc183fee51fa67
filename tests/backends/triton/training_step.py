"""Check a training step whose every fused region runs by its kernel, in Triton's interpreter.

`TRITON_INTERPRET=1 python training_step.py`, with `STRETTO_KERNELS` for a folder of kernels. Prints JSON: the exit code
of `stretto run --check`, how many functions are regions, how many calls of kernels there were.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import stretto
from stretto.backends.program.lower_program import lower_program
from stretto.backends.triton.implementation import KIND, TRITON_KERNELS, RegionKernel, build
from stretto.cli import main
from stretto.ir.module import Module
from stretto.passes.fusion.fuse_regions import FuseRegions
from stretto.runtime.implementations.registry import Kernel, KindFunction
from stretto.runtime.program.program import Program
from torch import Tensor

EXAMPLES = Path(__file__).parents[3] / "examples"
calls: Counter[str] = Counter()


def counted(function: KindFunction, target: str) -> Kernel | None:
    """The kernel of a region, whose calls are counted."""
    kernel = build(function, target)
    if kernel is None:
        return None

    def call(*inputs: Tensor, kernel: RegionKernel = kernel) -> tuple[Tensor, ...]:
        calls[function.name] += 1
        return kernel(*inputs)

    return call


def fused(folder: Path) -> Path:
    """The program of a tiny Llama on two ranks, with its regions as functions."""
    target, plan = f"hf:{EXAMPLES}/configs/llama_tiny.json", str(EXAMPLES / "plans" / "tp.plan")
    compiled = folder / "compiled"
    assert main(["compile", target, "--batch", "2", "--seq", "32", "--plan", plan, "-o", str(compiled)]) == 0
    program, module = Program.load(compiled), Module.parse((compiled / "ir.mlir").read_text(encoding="utf-8"))
    FuseRegions().run(module)
    lowered = lower_program(module)
    ports = {"inputs": lowered.inputs, "outputs": lowered.outputs, "locations": lowered.locations}
    replace(program, functions=lowered.functions, types=lowered.types, **ports).save(folder / "fused")
    return folder / "fused"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        written = fused(Path(place))
        regions = [f for f in Program.load(written).functions.values() if f.kind is not None and f.kind.name == KIND]
        stretto.register_implementation(replace(TRITON_KERNELS, targets=("cpu",), build=counted))
        code = main(["run", str(written), "--check"])
    print(json.dumps({"code": code, "regions": len(regions), "called": len(calls), "calls": calls.total()}))
    sys.exit(0)
