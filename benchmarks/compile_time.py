"""How long it takes to compile Llama shapes for training, and how much memory: weights are never allocated.

    python benchmarks/compile_time.py                  all shapes, growth with layers, growth with the mesh
    python benchmarks/compile_time.py --only layers    one of: shapes, layers, meshes

Each compilation is a process of its own. Seconds are wall time, with the processor time of the process beside the
sums, which other work on the machine disturbs less; RSS is the process's peak.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parent / "configs"
PLAN = """
mesh (dp={dp}, tp={tp})
shard "*.{{q,k,v}}_proj", "*.{{gate,up}}_proj" columns over tp
shard "*.o_proj", "*.down_proj" rows over tp
shard "*.embed_tokens", "lm_head" vocab over tp
shard activations tokens over tp
"""
SEQ = 4096
STAGES = ("imports", "model", "capture", "backward", "convert", "passes", "lower", "save")


def measured(shape: str, layers: int | None, dp: int, tp: int) -> dict[str, Any]:
    """Compile one shape in this process: seconds by stage and by pass, peak RSS in MiB, sizes."""
    clock = Clock()
    from stretto import Plan
    from stretto.driver.compile.compile_program import compile_program
    from stretto.driver.compile.request import CompileRequest, Observer, Options
    from stretto.frontend.captured import Mode
    from stretto.frontend.targets.load_target import load_target
    from stretto.frontend.targets.target import Request

    config = json.loads((CONFIGS / f"{shape}.json").read_text())
    config["num_hidden_layers"] = layers or config["num_hidden_layers"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        file.write_text(json.dumps(config))
        import transformers  # noqa: F401  (its time is not the model's)

        clock.lap("model")
        target = load_target(f"hf:{file}", Request(Mode.TRAIN, batch=dp, seq=SEQ, dtype="bfloat16"))
        assert not target.weights_are_real
        plan = Plan.parse(PLAN.format(dp=dp, tp=tp))
        options = Options(loss_only=True, keep_weights=False)
        request = CompileRequest.of(target.model, (), target.inputs, plan, options)
        compiled = compile_program(request, Observer(stage=clock.lap))
        clock.lap("save")
        compiled.program.save(Path(folder, "program"))
        size = sum(path.stat().st_size for path in Path(folder, "program").iterdir())
    clock.lap("end")
    assert set(clock.seconds) == set(STAGES), f"the table has no column for {set(clock.seconds) - set(STAGES)}"
    return {
        "shape": shape,
        "layers": config["num_hidden_layers"],
        "mesh": f"{dp}x{tp}",
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "passes": {run.name: run.seconds for run in compiled.runs},
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "program_mib": size / 2**20,
        "instructions": sum(len(function.code) for function in compiled.program.functions.values()),
    }


class Clock:
    """Seconds between laps, of wall and processor, under the name that each lap began with."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self._stage, self._since, self._cpu = "imports", time.perf_counter(), time.process_time()

    def lap(self, stage: str) -> None:
        """End the stage that runs and begin another."""
        now, cpu = time.perf_counter(), time.process_time()
        self.seconds[self._stage], self.cpu_seconds[self._stage] = now - self._since, cpu - self._cpu
        self._stage, self._since, self._cpu = stage, now, cpu


def elsewhere(shape: str, layers: int | None = None, dp: int = 8, tp: int = 8) -> dict[str, Any]:
    """`measured` in a fresh process."""
    arguments = json.dumps([shape, layers, dp, tp])
    result = subprocess.run(
        [sys.executable, __file__, "--one", arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    report: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return report


def whole_capture(row: dict[str, Any], clock: str = "seconds") -> float:
    """Seconds of tracing forward and backward."""
    total: float = sum(row[clock][stage] for stage in ("capture", "backward"))
    return total


def after_capture(row: dict[str, Any], clock: str = "seconds") -> float:
    """Seconds of everything between the captured graph and the program."""
    total: float = sum(row[clock][stage] for stage in ("convert", "passes", "lower"))
    return total


def show(title: str, *jobs: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Measure each job; one line a compilation, as a Markdown table."""
    print(f"\n{title}\n")
    sums = ("capture with backward, processor", "after it, wall and processor", "peak RSS", "program")
    columns = ("shape", "layers", "mesh", *STAGES, *sums)
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    rows = []
    for job in jobs:
        row = elsewhere(*job)
        rows.append(row)
        seconds = " | ".join(f"{row['seconds'].get(stage, 0.0):.2f}" for stage in STAGES)
        print(
            f"| {row['shape']} | {row['layers']} | {row['mesh']} | {seconds} | {whole_capture(row, 'cpu_seconds'):.2f} "
            f"| {after_capture(row):.2f}, {after_capture(row, 'cpu_seconds'):.2f} "
            f"| {row['rss_mib']:.0f} MiB | {row['program_mib']:.1f} MiB, {row['instructions']} instructions |",
            flush=True,
        )
    for row in rows:
        slowest = sorted(row["passes"].items(), key=lambda item: -item[1])[:4]
        named = ", ".join(f"{name} {seconds:.2f}" for name, seconds in slowest)
        print(f"Slowest passes, {row['shape']} {row['layers']} {row['mesh']}: {named}", flush=True)
    return rows


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["shapes", "layers", "meshes"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(*json.loads(options.one))))
        return
    if options.only in (None, "shapes"):
        show("Shapes, seconds", ("llama_8b",), ("llama_70b",), ("llama_405b",))
    if options.only in (None, "layers"):
        few, many = show("Growth with layers", ("llama_8b", 8), ("llama_8b", 32))
        for clock in ("seconds", "cpu_seconds"):
            growth = after_capture(many, clock) / after_capture(few, clock)
            print(f"after capture, 32 layers against 8, {clock}: {growth:.2f}x")
    if options.only in (None, "meshes"):
        show("Growth with the mesh", *(("llama_8b", 8, dp, tp) for dp, tp in ((2, 2), (8, 8), (128, 8))))


if __name__ == "__main__":
    main()
