"""How long a sweep over plans takes, and one step of a large program from its folder: processor time and peak memory.

    python benchmarks/simulation_speed.py sweep [--plans N]    a Llama of 8B on 64 GPUs, captured once for all plans
    python benchmarks/simulation_speed.py folder DIR           one step of a compiled program, by parts

Seconds are the processor time of this process; imports are not in them, but for the line that says so.
"""

import argparse
import itertools
import resource
import time
from pathlib import Path

from stretto import Plan
from stretto.backends.simulator.simulation import simulate
from stretto.dsl.clusters.cluster import Cluster
from stretto.runtime.program.program import Program

CONFIG = Path(__file__).parent / "configs" / "llama_8b.json"
RANKS, BATCH, SEQ = 64, 128, 4096
SHARDED = """
shard "*.{q,k,v}_proj", "*.{gate,up}_proj" columns over tp
shard "*.o_proj", "*.down_proj" rows over tp
shard "*.embed_tokens", "lm_head" vocab over tp
"""


def plans() -> list[tuple[str, str]]:
    """Names and texts of plans for 64 ranks: degrees, ZeRO levels, sequence parallelism, recomputation, schedules."""
    found = []
    for tp, pp in itertools.product((1, 2, 4, 8), (1, 2, 4)):
        sizes = {"pp": pp, "dp": RANKS // tp // pp, "tp": tp}
        mesh = ", ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
        for zero, tokens, again, schedule in itertools.product(
            (1, 3), (False, True), (False, True), ("1f1b", "zb-h1", "gpipe")
        ):
            if (tokens and tp == 1) or (pp == 1 and schedule != "1f1b"):
                continue
            lines = [f"mesh ({mesh})", SHARDED if tp > 1 else "", f"zero {zero} over dp"]
            lines += ["shard activations tokens over tp"] if tokens else []
            lines += ['recompute "*.layers.*"'] if again else []
            lines += [f"pipeline over pp {{ schedule {schedule}  microbatches {2 * pp} }}"] if pp > 1 else []
            name = f"{mesh} zero {zero}{' tokens' * tokens}{' recompute' * again}{f' {schedule}' if pp > 1 else ''}"
            found.append((name, "\n".join(lines)))
    return found


def sweep(number: int) -> None:
    """Capture once, then compile and simulate plans that are spread over all of `plans`."""
    from stretto.driver.compile.compile_program import compile_capture
    from stretto.driver.compile.request import CompileRequest, Options
    from stretto.driver.compile.traced_call import traced_call
    from stretto.frontend.captured import Mode
    from stretto.frontend.targets.load_target import load_target
    from stretto.frontend.targets.target import Request

    every = plans()
    chosen = [every[round(i * (len(every) - 1) / max(number - 1, 1))] for i in range(number)]
    start = time.process_time()
    target = load_target(f"hf:{CONFIG}", Request(Mode.TRAIN, batch=BATCH, seq=SEQ, dtype="bfloat16"))
    options = Options(loss_only=True, keep_weights=False)
    request = CompileRequest.of(target.model, (), target.inputs, Plan.parse(chosen[0][1]), options)
    captured = traced_call(request).captures().own
    print(f"loaded and captured once: {time.process_time() - start:.1f} s; {len(every)} plans in all")
    cluster = Cluster(RANKS // 8, 8, "H100-SXM-80GB", 50e9)
    compiling, simulating = 0.0, 0.0
    for name, text in chosen:
        start = time.process_time()
        program = compile_capture(captured, target.model, Plan.parse(text), options).program
        middle = time.process_time()
        step = simulate(program, cluster)
        end = time.process_time()
        compiling, simulating = compiling + middle - start, simulating + end - middle
        times = f"compile {middle - start:6.2f} s  simulate {end - middle:5.2f} s"
        print(f"{times}  step {step.seconds:7.3f} s  {step.slowest.peak_bytes / 1e9:6.1f} GB  {name}", flush=True)
    print(f"a plan: compile {compiling / number:.2f} s, simulate {simulating / number:.2f} s; {memory()}")


def folder(path: Path) -> None:
    """Load and simulate one program."""
    print(f"imports {time.process_time():.1f} s")
    start = time.process_time()
    program = Program.load(path).validated
    middle = time.process_time()
    step = simulate(program, Cluster(-(-program.mesh.ranks // 8), 8, "H100-SXM-80GB", 50e9))
    end = time.process_time()
    print(f"load {middle - start:.2f} s, simulate {end - middle:.2f} s, {memory()}")
    instructions = sum(len(function.code) for function in program.functions.values())
    print(f"{program.mesh.ranks} ranks, {instructions} instructions, {step.walked} steps walked: {step.seconds:.3f} s")


def memory() -> str:
    """The peak of this process so far."""
    return f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("sweep").add_argument("--plans", type=int, default=12)
    kinds.add_parser("folder").add_argument("path", type=Path, metavar="DIR")
    options = parser.parse_args()
    if options.kind == "sweep":
        sweep(options.plans)
    else:
        folder(options.path)


if __name__ == "__main__":
    main()
