"""How long the first training call of a GPT takes, without a cache and from one, beside torch.compile's.

    python benchmarks/first_call.py                  5 rounds, each of every kind after another
    python benchmarks/first_call.py --ranks 4        also the processor time of four ranks together

Every measurement is a process of its own, which has imported both compilers and built the model; then it times
`model(tokens, targets).backward()`. Seconds are wall time and, beside them, the processor time of the process, which
other work on the machine disturbs less. A cached call finds what one process has left in a folder of this benchmark;
torch.compile has its own cache there.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "examples" / "plans" / "dp_tp.plan"
KINDS = ("stretto", "stretto cached", "torch.compile cached")


def first_call(compiler: str, layers: int) -> tuple[float, float]:
    """Wall and processor seconds of the first training call in this process."""
    sys.path.insert(0, str(ROOT / "examples"))
    import stretto
    import torch
    import torch._inductor.compile_fx  # torch.compile imports it in its first call
    from gpt import GPT, Config

    torch.manual_seed(0)
    model = GPT(Config(layers=layers))
    tokens = torch.randint(0, 256, (8, 128))
    compiled = torch.compile(model) if compiler == "torch" else stretto.compile(model, plan=str(PLAN))
    wall, processor = time.perf_counter(), time.process_time()
    compiled(tokens, tokens).backward()
    return time.perf_counter() - wall, time.process_time() - processor


def measured(kind: str, layers: int, folder: Path, rank: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """A process that prints its measurement."""
    cached = kind.endswith("cached")
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "STRETTO_CACHE": str(folder / "stretto") if cached else "off",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch"), **(rank or {}),
    }  # fmt: skip
    compiler = "torch" if kind.startswith("torch") else "stretto"
    command = [sys.executable, __file__, "--measure", compiler, "--layers", str(layers)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def result(process: "subprocess.Popen[str]") -> tuple[float, float]:
    """What a process has measured."""
    out, _ = process.communicate(timeout=1200)
    if process.returncode:
        raise SystemExit(f"a measurement failed with exit code {process.returncode}")
    wall, processor = map(float, out.split()[-2:])
    return wall, processor


def of_ranks(number: int, layers: int, folder: Path) -> float:
    """The processor seconds of all ranks' first call, without a cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", "STRETTO_TIMEOUT_S": "300",
        }
        for rank in range(number)
    ]  # fmt: skip
    processes = [measured("stretto", layers, folder, rank) for rank in ranks]
    return sum(result(process)[1] for process in processes)


def report(kind: str, seconds: tuple[float, float]) -> None:
    """One line of a measurement, at once."""
    wall, processor = seconds
    print(f"{kind:30} {wall:6.2f} s, processor {processor:6.2f} s, load {os.getloadavg()[0]:.1f}", flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--ranks", type=int, default=0)
    parser.add_argument("--measure", choices=("stretto", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(*first_call(options.measure, options.layers))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cold = result(measured("torch.compile cached", options.layers, folder))
        report("torch.compile without a cache", cold)
        result(measured("stretto cached", options.layers, folder))
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        together: list[float] = []
        for _ in range(options.rounds):
            for kind in KINDS:
                found[kind].append(result(measured(kind, options.layers, folder)))
                report(kind, found[kind][-1])
            if options.ranks:
                together.append(of_ranks(options.ranks, options.layers, folder))
        for kind, times in found.items():
            wall, processor = (statistics.median(each) for each in zip(*times, strict=True))
            report(f"median: {kind}", (wall, processor))
        base = statistics.median(wall for wall, _ in found["torch.compile cached"])
        for kind in KINDS[:2]:
            ratio = statistics.median(wall for wall, _ in found[kind]) / base
            print(f"{kind:22} {ratio:.2f} of torch.compile's cached first call")
        if together:
            one = statistics.median(processor for _, processor in found["stretto"])
            print(
                f"{options.ranks} ranks together, processor {statistics.median(together):.2f} s, "
                f"{statistics.median(together) / one:.2f} of one process"
            )
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
