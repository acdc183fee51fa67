"""Programs on a GPU: are generated kernels right, how fast are they, and do streams run as they were recorded.

    python benchmarks/gpu.py prepare DIR     where the compiler is: compiles examples and outlines their fused regions
    python benchmarks/gpu.py run DIR         where the GPU is: needs torch, Triton and the folders of DIR

Prints one row for each region of each program: the error beside float64, and on a GPU the time, the share of the
bandwidth of a copy, and the time of the ops one by one. Without a GPU kernels run in Triton's interpreter: the rows say
whether they are right, and no time is taken.

Then one row for each program: the streams of all ranks are recorded and proved. A program of one rank also runs through
the issuing code, on a GPU with torch's streams: the log must be the recorded one, proved again with the addresses that
memory really had, and the outputs are compared with the executor's on the CPU.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from stretto.backends.cuda.agreement import prove  # noqa: E402
from stretto.backends.cuda.cuda_streams import CudaStreams  # noqa: E402
from stretto.backends.cuda.proof import prove_rank  # noqa: E402
from stretto.backends.cuda.recording import recorded  # noqa: E402
from stretto.backends.cuda.stream_executor import StreamExecutor  # noqa: E402
from stretto.backends.cuda.stream_log import Allocate, Entry  # noqa: E402
from stretto.backends.triton.implementation import KIND, region_of  # noqa: E402
from stretto.backends.triton.kernel_files import KernelFiles  # noqa: E402
from stretto.backends.triton.kernels import CompiledRegion, compile_region  # noqa: E402
from stretto.backends.triton.region import Region  # noqa: E402
from stretto.backends.triton.tuning import chosen_blocks  # noqa: E402
from stretto.runtime.implementations.binding import kind_functions  # noqa: E402
from stretto.runtime.program.arguments import DTYPES, Slot  # noqa: E402
from stretto.runtime.program.program import Program  # noqa: E402
from stretto.runtime.program.records import Input  # noqa: E402
from stretto.runtime.rank.executor import Executor  # noqa: E402
from stretto.runtime.threads.communicator import RankGroup  # noqa: E402
from torch import Tensor  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"
TARGETS = {
    "llama": [f"hf:{EXAMPLES}/configs/llama_tiny.json", "--batch", "2", "--seq", "32"],
    "gpt": [f"{EXAMPLES}/targets.py:gpt", "--dtype", "bfloat16"],
}
ALONE = "alone"
"""The name of the program of one rank, which runs on one GPU."""
WARM_UPS, REPEATS = 10, 50


def prepare(folder: Path) -> None:
    """Write the programs of the examples with their fused regions as functions."""
    from stretto.backends.program.lower_program import lower_program
    from stretto.cli import main
    from stretto.ir.module import Module
    from stretto.passes.fusion.fuse_regions import FuseRegions

    for name, arguments in {**TARGETS, ALONE: [f"{EXAMPLES}/targets.py:gpt"]}.items():
        with tempfile.TemporaryDirectory() as compiled:
            plan = Path(compiled) / "one.plan"
            plan.write_text("mesh (dp=1)\n", encoding="utf-8")
            plan = plan if name == ALONE else EXAMPLES / "plans" / "tp.plan"
            code = main(["compile", *arguments, "--plan", str(plan), "-o", f"{compiled}/{name}"])
            if code:
                sys.exit(code)
            program = Program.load(f"{compiled}/{name}")
            module = Module.parse((Path(compiled) / name / "ir.mlir").read_text(encoding="utf-8"))
            FuseRegions().run(module)
            lowered = lower_program(module)
            ports = {"inputs": lowered.inputs, "outputs": lowered.outputs, "locations": lowered.locations}
            replace(program, functions=lowered.functions, types=lowered.types, **ports).save(folder / name)


def values(region: Region, inputs: Sequence[Tensor], raised: bool) -> dict[int, Tensor]:
    """The values of a region's slots by torch's ops; `raised`: in float64."""

    def up(value: object) -> object:
        if not raised:
            return value
        if isinstance(value, Tensor) and value.dtype.is_floating_point:
            return value.double()
        return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value

    found: dict[int, object] = {slot: up(x) for slot, x in zip(region.inputs, inputs, strict=True)}

    def read(value: object) -> object:
        if isinstance(value, Slot):
            return found[value.index]
        return [read(item) for item in value] if isinstance(value, list | tuple) else up(value)

    for each in region.code:
        _, name, overload = each.op.split(".")
        op = getattr(getattr(torch.ops.aten, name), overload)
        is_factory = not any(isinstance(argument, Slot | list | tuple) for argument in each.args)
        place = {"device": inputs[0].device} if is_factory and inputs else {}
        made = op(*map(read, each.args), **{key: read(value) for key, value in each.kwargs.items()}, **place)
        made = made if isinstance(made, tuple) else (made,)
        found.update((slot, up(x)) for slot, x in zip(each.out, made, strict=True) if slot is not None)
    return found  # type: ignore[return-value]


def random_inputs(region: Region, device: str) -> list[Tensor]:
    """Positive numbers, which have roots and logarithms; integers 0 and 1, which are in every table."""
    generator = torch.Generator(device).manual_seed(0)
    made = []
    for slot in region.inputs:
        shape, dtype = region.shape(slot), DTYPES[region.types[slot].dtype]
        uniform = torch.rand(shape, generator=generator, device=device) + 0.1
        made.append(uniform.to(dtype) if dtype.is_floating_point else (uniform > 0.6).to(dtype))
    return made


def milliseconds(call: object) -> float:
    """The median time of a call on the GPU."""
    assert callable(call)
    times = []
    for turn in range(WARM_UPS + REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) if turn >= WARM_UPS else float("inf"))
    return sorted(times)[REPEATS // 2]


def times(region: Region, compiled: CompiledRegion, inputs: Sequence[Tensor], kernels: Path) -> list[str]:
    """The kernel's time, its share of the bandwidth of a copy of as many bytes, and the time of torch's ops."""
    moved = sum(region.types[slot].bytes for slot in (*region.inputs, *region.outputs))
    blank = torch.empty(max(moved // 2, 1), dtype=torch.uint8, device="cuda")
    device, files = torch.cuda.get_device_name(), KernelFiles(kernels)
    blocks = chosen_blocks(
        compiled.kernel, files, device, lambda each: milliseconds(lambda: replace(compiled, blocks=each)(*inputs))
    )
    best = replace(compiled, blocks=blocks)
    own, copy = milliseconds(lambda: best(*inputs)), milliseconds(blank.clone)
    ops = milliseconds(lambda: values(region, inputs, raised=False))
    return [f"{own * 1e3:.1f}", f"{copy / own:.2f}", f"{ops * 1e3:.1f}"]


def error(region: Region, outputs: Sequence[Tensor], expected: dict[int, Tensor]) -> float:
    """The largest difference, relative to the largest value of each output."""
    worst = 0.0
    for slot, output in zip(region.outputs, outputs, strict=True):
        reference = expected[slot].double()
        difference = (output.double() - reference).abs()
        worst = max(worst, float(difference.max() / reference.abs().max().clamp(min=1e-30)))
    return worst


def rows(folder: Path, kernels: Path) -> Iterator[list[str]]:
    """One row for each region of each program of a folder."""
    device = "cuda" if ON_GPU else "cpu"
    target = "cuda:{}{}".format(*torch.cuda.get_device_capability()) if ON_GPU else "interpreter"
    for place in sorted(folder.iterdir()):
        for name, function in kind_functions(Program.load(place)).items():
            if function.kind.name != KIND:
                continue
            region = region_of(function)
            if isinstance(region, str):
                yield [place.name, name, str(len(function.body.code)), f"declined: {region}", "", "", ""]
                continue
            inputs = random_inputs(region, device)
            compiled = compile_region(region, target, kernels)
            wrong = error(region, compiled(*inputs), values(region, inputs, raised=True))
            timed = times(region, compiled, inputs, kernels) if ON_GPU else ["", "", ""]
            yield [place.name, name, str(len(region.code)), f"{wrong:.1e}", *timed]


def stream_rows(folder: Path) -> Iterator[list[str]]:
    """One row for each program of a folder: what its streams are, and how they ran."""
    for place in sorted(folder.iterdir()):
        program = Program.load(place)
        logs = [recorded(program, rank) for rank in range(program.mesh.ranks)]
        prove(logs)
        streams = {entry.stream for entry in logs[0] if not hasattr(entry, "block")}
        ran = ran_as_recorded(program, logs[0]) if program.mesh.ranks == 1 else "not run"
        yield [place.name, str(program.mesh.ranks), ", ".join(sorted(streams)), str(len(logs[0])), "proved", ran]


def ran_as_recorded(program: Program, expected: Sequence[Entry]) -> str:
    """Run a forward and backward through the issuing code; the error of all results beside the CPU's executor."""
    device = torch.device("cuda" if ON_GPU else "cpu")
    communicator = RankGroup(program.mesh).communicator(0)
    entry = program.entry_of(0)
    inputs = [program.weights[each.name] if each.name in program.weights else ones(each) for each in entry.inputs]
    given = {each.slot: x for each, x in zip(entry.inputs, inputs, strict=True)}
    taken = [given[each.slot] for each in entry.forward_inputs]
    tangents = [given[each.slot] for each in entry.inputs if each not in entry.forward_inputs]
    found = []
    for executor, where in (
        (Executor(program, communicator), torch.device("cpu")),
        (StreamExecutor(program, communicator, device, CudaStreams(device) if ON_GPU else None), device),
    ):
        outputs, frame = executor.forward([x.to(where) for x in taken])
        found.append([*outputs, *executor.backward(frame, [x.to(where) for x in tangents])])
    log = executor.log
    assert list(map(placeless, log)) == list(map(placeless, expected)), "what was issued is not what was recorded"
    prove_rank(log)
    plain, streams = found
    largest = max(float(x.abs().max()) for x in plain)
    worst = max(float((b.cpu() - a).abs().max()) for a, b in zip(plain, streams, strict=True)) / largest
    return f"as recorded, error {worst:.1e}"


def ones(record: Input) -> Tensor:
    """Ones, the first of every vocabulary but one, and a loss's tangent."""
    return torch.ones(record.shape, dtype=DTYPES[record.dtype])


def placeless(entry: Entry) -> Entry:
    """An entry without the address of its memory."""
    return replace(entry, address=0) if isinstance(entry, Allocate) else entry


def main(arguments: Sequence[str]) -> int:
    match arguments:
        case ["prepare", folder]:
            prepare(Path(folder))
            return 0
        case ["run", folder]:
            pass
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    if ON_GPU:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    else:
        print("no GPU: kernels ran in Triton's interpreter, and no figure of speed was taken")
    print("| program | region | ops | error | µs | of a copy's bandwidth | ops one by one, µs |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as kernels:
        for row in rows(Path(folder), Path(kernels)):
            print(f"| {' | '.join(row)} |")
    print("\n| program | ranks | streams | entries of the log | proof | run |")
    print("|---|---|---|---|---|---|")
    for row in stream_rows(Path(folder)):
        print(f"| {' | '.join(row)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
