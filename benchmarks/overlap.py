"""What overlap hides over a slow link: training steps at levels 0 and 1, by hand, and PyTorch's, on two ranks.

    python benchmarks/overlap.py                               all comparisons at 1 Gbit/s; as root
    python benchmarks/overlap.py --only "tensor parallel" --hidden 512 --seq 256 --repeats 15 --json

Each rank is a process in a network namespace of its own, pinned to one core with its gloo threads. A pair of virtual
interfaces joins the two, shaped with `tbf` in both directions. Namespaces need root, so the benchmark says so and stops
without. The rate that a large message reaches is printed first.

All sides of a comparison take turns and must first agree on the loss and on a gradient. *Cut* is the program of level 0
with the dependencies between its kernels and its collectives cut: all of a step's messages are sent from its beginning
on, of tensors that nothing waits for, beside all kernels. No order of the same work is faster. With S the step at level
0, `recovered` is (S - step) / (S - cut). `share` is the part of S that goes when collectives give a copy at once
(`alone`). `max` is the longer of the kernels alone and the messages alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import stretto
import torch
import torch.distributed as dist
from sharded import Llama, Side, built, fully_sharded, measure, unshard_first
from stretto.runtime.processes import torch_collectives
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

TENSOR = """mesh (tp=2)
shard "*.{q,k,v}_proj", "*.{gate,up}_proj" columns over tp
shard "*.o_proj", "*.down_proj" rows over tp
"""
ZERO = "mesh (dp=2)\nzero 3 over dp { bucket 25MB }\n"
CONTEXT = "mesh (cp=2)\nshard inputs dim 1 over cp\nattention over cp { method gather }\n"
BY_HAND = {
    "tensor parallel": TENSOR + "split batch into 2 { order interleave }\noverlap { level 1  memory +50% }",
    "zero 3": "mesh (dp=2)\nzero 3 over dp { bucket 25MB  prefetch 2 }\noverlap { level 1  memory +50% }",
    "context parallel": CONTEXT.replace("gather", "ring") + "overlap { level 1  memory +50% }",
}
PLANS = {"tensor parallel": TENSOR, "zero 3": ZERO, "context parallel": CONTEXT}
ADDRESS, PORT, WIRE = "10.123.0.{}", "29561", "stretto"
_METHODS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "permute")


class Done:
    """A collective that is over."""

    def wait(self, *_: object) -> bool:
        """Nothing to wait for."""
        return True

    def is_completed(self) -> bool:
        """It is over."""
        return True


def stand_in(method: str, tensor: Tensor) -> Tensor:
    """Of the shape of a collective's result, from what a rank has."""
    match method:
        case "all_gather":
            return tensor.expand(dist.get_world_size(), *tensor.shape).contiguous()
        case "reduce_scatter":
            return tensor[0].clone()
        case _:
            return tensor.clone()


class Cut(Side):
    """A side whose collectives give at once what a rank has itself, with the messages beside it or without."""

    def __init__(self, side: Side, *, messages: bool, kernels: bool = True) -> None:
        self.model, self.batch, self.call, self.optimizer = side.model, side.batch, side.call, side.optimizer
        self.times = {part: [] for part in side.times}
        self._messages, self._kernels = messages, kernels
        self._sent: list[Callable[[], object]] = []
        self._record()

    def _record(self) -> None:
        """One step, of which the messages are kept: by how each is sent."""
        kind = torch_collectives.GlooCollectives

        def recording(method: str, real: Callable[..., object]) -> Callable[..., object]:
            def call(group: object, tensor: Tensor, *rest: object) -> object:
                dummy = torch.zeros_like(tensor)
                self._sent.append(lambda: real(group, dummy, *rest))
                return real(group, tensor, *rest)

            return call

        with replaced(kind, recording):
            self.call(*self.batch).backward()
            self.optimizer.zero_grad()

    def step(self) -> None:
        """One timed step."""

        def cutting(method: str, real: Callable[..., object]) -> Callable[..., object]:
            def call(group: object, tensor: Tensor, *rest: object) -> object:
                result = stand_in(method, tensor)
                return Done(), lambda: result

            return call

        dist.barrier()
        began = time.perf_counter()
        works = [send() for send in self._sent] if self._messages else []
        if self._kernels:
            with replaced(torch_collectives.GlooCollectives, cutting):
                self.call(*self.batch).backward()
        for work, _ in works:  # type: ignore[misc]
            work.wait()
        self.optimizer.zero_grad()
        for times in self.times.values():
            times.append(time.perf_counter() - began)


@contextmanager
def replaced(kind: type, make: Callable[[str, Callable[..., object]], Callable[..., object]]) -> Iterator[None]:
    """Other collectives for a while; a collective that another one uses stays its own."""
    real = {method: getattr(kind, method) for method in _METHODS}
    inside = [False]

    def guarded(method: str) -> Callable[..., object]:
        other = make(method, real[method])

        def call(*args: object) -> object:
            if inside[0]:
                return real[method](*args)
            inside[0] = True
            try:
                return other(*args)
            finally:
                inside[0] = False

        return call

    own = {method: kind.__dict__.get(method) for method in _METHODS}
    for method in _METHODS:
        setattr(kind, method, guarded(method))
    try:
        yield
    finally:
        for method, before in own.items():
            if before is None:
                delattr(kind, method)
            else:
                setattr(kind, method, before)


def parallelized(model: Llama) -> Llama:
    """PyTorch's tensor parallelism: products by columns, then by rows."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    columns = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    for layer in model.layers:
        styles = {**{name: ColwiseParallel() for name in columns}, "o_proj": RowwiseParallel()}
        parallelize_module(layer, mesh, {**styles, "down_proj": RowwiseParallel()})
    return model


def others(name: str, options: argparse.Namespace, batch: tuple[Tensor, ...]) -> dict[str, Side]:
    """PyTorch's own ways."""

    def model() -> Llama:
        return built(options.hidden, options.layers)

    if name == "tensor parallel":
        sides = {"parallelize_module": Side(parallelized(model()), batch)}
        if not options.no_compile:
            other = parallelized(model())
            sides["parallelize_module, torch.compile"] = Side(other, batch, torch.compile(other, dynamic=False))
        return sides
    if name == "zero 3":
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
        own = tuple(t.chunk(2)[dist.get_rank()] for t in batch)
        plain, ahead = (fully_sharded(model(), mesh, prefetch=prefetch) for prefetch in (False, True))
        return {"fully_shard": Side(plain, own), "fully_shard, prefetch": Side(ahead, own, unshard_first(ahead))}
    return {}


def compare(name: str, options: argparse.Namespace) -> dict[str, object]:
    """Measure one comparison; milliseconds of each side and what follows from them."""
    torch.manual_seed(1)
    tokens, targets = torch.randint(2048, (2, options.batch, options.seq))
    batch = (tokens, torch.arange(options.seq).expand(options.batch, -1).contiguous(), targets)

    def ours(plan: str) -> Side:
        model: nn.Module = stretto.compile(built(options.hidden, options.layers), plan=plan)
        return Side(model, batch)

    plan = PLANS[name]
    sides = {
        "level 0": ours(plan + "overlap { level 0 }"), "level 1": ours(plan), "by hand": ours(BY_HAND[name]),
        **others(name, options, batch),
    }  # fmt: skip
    measure(sides, 0)
    base = sides["level 0"]
    cut = {
        "cut": Cut(base, messages=True), "kernels alone": Cut(base, messages=False),
        "messages alone": Cut(base, messages=True, kernels=False),
    }  # fmt: skip
    for side in sides.values():
        for times in side.times.values():
            times.clear()
    for _ in range(options.repeats):
        for side in (*sides.values(), *cut.values()):
            side.step()
    taken = {key: 1e3 * statistics.median(side.times["forward and backward"]) for key, side in {**sides, **cut}.items()}
    whole, least = taken["level 0"], taken["cut"]
    return {
        "comparison": name,
        "ms": {key: round(value, 2) for key, value in taken.items()},
        "share": round(1 - taken["kernels alone"] / whole, 3),
        "max": round(max(taken["kernels alone"], taken["messages alone"]), 2),
        "recovered": {
            key: round((whole - taken[key]) / (whole - least), 3) for key in ("level 1", "by hand") if whole > least
        },
        "to the best of PyTorch": {
            key: round(taken[key] / min(taken[other] for other in taken if "_" in other), 3)
            for key in ("level 1", "by hand")
            if any("_" in other for other in taken)
        },
    }


def wire_rate() -> float:
    """What a message of 8 MiB reaches, in Gbit/s."""
    message, rates = torch.zeros(2 << 20), []
    for _ in range(3):
        dist.barrier()
        began = time.perf_counter()
        if dist.get_rank() == 0:
            dist.send(message, 1)
        else:
            dist.recv(message, 0)
        dist.barrier()
        rates.append(8e-9 * message.nbytes / (time.perf_counter() - began))
    return statistics.median(rates)


def run_rank(options: argparse.Namespace) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rate = wire_rate()
    for name in options.only:
        found = compare(name, options)
        if dist.get_rank() == 0:
            facts = {key: getattr(options, key) for key in ("hidden", "layers", "batch", "seq", "repeats", "rate")}
            found = {**facts, "wire_gbit_s": round(rate, 3), "load": round(os.getloadavg()[0], 1), **found}
            print(json.dumps(found) if options.json else _table(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def _table(found: dict[str, object]) -> str:
    shape = ", ".join(f"{key} {found[key]}" for key in ("hidden", "layers", "batch", "seq", "repeats", "load"))
    lines = [f"\n{found['comparison']}: {shape}; the wire reaches {found['wire_gbit_s']} Gbit/s\n"]
    milliseconds = found["ms"]
    assert isinstance(milliseconds, dict)
    lines += [f"| {key} | {value} ms |" for key, value in milliseconds.items()]
    return "\n".join([*lines, *(f"| {key} | {found[key]} |" for key in list(found)[-4:])])


@contextmanager
def link(rate: str) -> Iterator[list[str]]:
    """Two namespaces and a shaped link between them: their names."""
    names = [f"{WIRE}{os.getpid()}{side}" for side in "ab"]
    wires = [f"st{os.getpid() % 100000}{side}" for side in "ab"]
    try:
        for name in names:
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", wires[0], "type", "veth", "peer", "name", wires[1])
        for number, (name, wire) in enumerate(zip(names, wires, strict=True), 1):
            inside = ("ip", "netns", "exec", name)
            _run("ip", "link", "set", wire, "netns", name)
            _run(*inside, "ip", "link", "set", wire, "name", WIRE)
            _run(*inside, "ip", "addr", "add", f"{ADDRESS.format(number)}/24", "dev", WIRE)
            for device in ("lo", WIRE):
                _run(*inside, "ip", "link", "set", device, "up")
            shape = ("tbf", "rate", rate, "burst", "256kb", "latency", "100ms")
            _run(*inside, "tc", "qdisc", "add", "dev", WIRE, "root", *shape)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def main() -> int:
    """Build the link and start a process at each end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("hidden", 512), ("layers", 4), ("batch", 4), ("seq", 256), ("repeats", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", default="1gbit", help="of the link, as tc has it")
    parser.add_argument("--only", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it needs a C++ compiler")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each comparison")
    options = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(options)
        return 0
    if os.geteuid() != 0:
        print("benchmarks/overlap.py needs root: it makes network namespaces and shapes a link", file=sys.stderr)
        return 2
    cores = sorted(os.sched_getaffinity(0))
    with link(options.rate) as names:
        ranks = []
        for rank, name in enumerate(names):
            environment = {
                "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": ADDRESS.format(1),
                "MASTER_PORT": PORT, "GLOO_SOCKET_IFNAME": WIRE, "OMP_NUM_THREADS": "1",
            }  # fmt: skip
            pinned = (
                "taskset",
                "-c",
                str(cores[rank % len(cores)]),
                sys.executable,
                str(Path(__file__)),
                *sys.argv[1:],
            )
            command = ["ip", "netns", "exec", name, *pinned]
            ranks.append(subprocess.Popen(command, env={**os.environ, **environment}))
        codes = [process.wait() for process in ranks]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
