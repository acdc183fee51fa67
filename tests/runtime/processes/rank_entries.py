"""What the processes of `test_distributed.py` run: one process is one rank; results are JSON, judged by the tests."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from stretto.diagnostics import StrettoError
from stretto.runtime import Program, RankGroup, RankMesh
from stretto.runtime.communicator import Communicator, Handle
from stretto.runtime.loaded_program import load_program
from stretto.runtime.processes.communicator import DistributedCommunicator
from stretto.runtime.processes.jobs import check_entry, steps_entry
from stretto.runtime.processes.parameters import distribute_parameters, parameter_shards
from stretto.runtime.processes.session import ProcessRank
from stretto.runtime.processes.world import join
from stretto.runtime.program.records import Shard
from stretto.runtime.rank.autograd import run
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

MESH = RankMesh((("dp", 2), ("tp", 2)))
AXES = [("dp",), ("tp",), ("dp", "tp"), ("tp", "dp"), ()]


def everything(_rank: int, folder: Path) -> Any:
    """All that four processes can show in one launch."""
    program = Program.load(folder / "grid")
    started = time.monotonic()
    return {
        "rank": join().rank,
        "differences": collectives(),
        "took": time.monotonic() - started,
        "refusals": refusals(program, Program.load(folder / "other"), Program.load(folder / "small")),
        "module": module_of_dtensors(program),
        "plain": plain_parameters(program),
        "entries": entries_of_one_state(folder / "entries"),
        "seeds": unequal_seeds(program),
        "nested": nested_shards(),
        "rotated": rotated_layers(),
        "lanes": named_lanes(),
        "check": check_entry({"folder": str(folder / "double"), "steps": 3, "seed": 1}),
        "wrong": check_entry({"folder": str(folder / "wrong"), "steps": 1, "seed": 1}),
        "steps": steps_entry({"folder": str(folder / "grid"), "steps": 4, "seed": 1}),
        "threads": torch.get_num_threads(),
    }


def collectives() -> dict[str, float]:
    """The largest difference between this rank's results and those of rank threads, by collective."""
    results: dict[str, float] = {}
    own = DistributedCommunicator(join(), MESH, AXES)
    for name, start in cases():
        mine = start(own).wait()
        expected = on_threads(start)[own.rank]
        same = mine.shape == expected.shape and mine.dtype == expected.dtype
        far = float((mine.double() - expected.double()).abs().max()) if same and mine.numel() else float(not same)
        results[name] = far
    return results


def entries_of_one_state(folder: Path) -> dict[str, Any]:
    """Entries of a folder that share a state, of which each process keeps its part."""
    xs = torch.arange(24.0).reshape(2, 4, 3)
    with load_program(folder) as loaded:
        cache = loaded.tensors["cache"]
        assert isinstance(cache, DTensor)
        memory = cache.to_local().data_ptr()
        added = [whole(loaded.run("add", x=x)[0]) for x in xs]
        [scaled] = loaded.run("scaled")
        values = [*added, whole(scaled), loaded.full_tensor("cache")]
        totals = [xs[0], xs.sum(0), 2 * xs.sum(0) + torch.tensor([0.0, 0.5, 1.0]), xs.sum(0)]
        return {
            "error": max(float((found - wanted).abs().max()) for found, wanted in zip(values, totals, strict=True)),
            "count": int(loaded.full_tensor("count")),
            "stays": memory == cache.to_local().data_ptr() and cache.to_local().shape == (2, 3),
            "copied": loaded.copied_state_bytes,
        }  # fmt: skip


def cases() -> list[tuple[str, Callable[[Communicator], Handle]]]:
    """(name, start) of many collectives over all groups of the mesh."""
    all_cases: list[tuple[str, Callable[[Communicator], Handle]]] = []
    for axes in AXES:
        for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
            label = f"{'+'.join(axes)} {str(dtype)[6:]}"
            for reduce in ("sum", "max", "min"):
                all_cases.append((f"all_reduce {reduce} {label}", reducing(axes, dtype, reduce)))
                all_cases.append((f"reduce_scatter {reduce} {label}", scattering(axes, dtype, reduce)))
            for dim in (0, 1, 2, -1):
                all_cases.append((f"all_gather {dim} {label}", gathering(axes, dtype, dim)))
            for split, concat in ((0, 0), (0, 1), (2, 0), (1, 2), (-1, 0)):
                all_cases.append((f"all_to_all {split} {concat} {label}", exchanging(axes, dtype, split, concat)))
            for wait_first in (0, 1):
                all_cases.append((f"buckets {wait_first} {label}", bucketing(axes, dtype, wait_first)))
            all_cases.append((f"rows {label}", sending_rows(axes, dtype)))
            for shift in (1, -1, 2, 0, 7):
                all_cases.append((f"permute {shift} {label}", permuting(axes, dtype, shift)))
    for axes in AXES:
        all_cases.append((f"large {'+'.join(axes)}", gathering_much(axes)))
        all_cases.append((f"huge {'+'.join(axes)}", reducing_much(axes)))
    all_cases.append(("scalar", lambda c: c.all_reduce_start(torch.tensor(float(c.rank)), ("dp",), "sum")))
    all_cases.append(("empty", lambda c: c.all_gather_start(torch.empty(0, 2), ("dp",), 0)))
    return all_cases


def reducing(axes: tuple[str, ...], dtype: torch.dtype, reduce: str) -> Callable[[Communicator], Handle]:
    return lambda c: c.all_reduce_start(contribution(c, dtype).transpose(0, 2), axes, reduce)


def scattering(axes: tuple[str, ...], dtype: torch.dtype, reduce: str) -> Callable[[Communicator], Handle]:
    return lambda c: c.reduce_scatter_start(contribution(c, dtype), axes, 1, reduce)


def gathering(axes: tuple[str, ...], dtype: torch.dtype, dim: int) -> Callable[[Communicator], Handle]:
    return lambda c: c.all_gather_start(contribution(c, dtype), axes, dim)


def exchanging(axes: tuple[str, ...], dtype: torch.dtype, split: int, concat: int) -> Callable[[Communicator], Handle]:
    return lambda c: c.all_to_all_start(contribution(c, dtype), axes, split, concat)


def sending_rows(axes: tuple[str, ...], dtype: torch.dtype) -> Callable[[Communicator], Handle]:
    """The member at i sends (i + 2 j) % 3 rows to the one at j."""

    def start(c: Communicator) -> Handle:
        mine, size = c.coordinate(axes), c.size(axes)
        sent = torch.tensor([(mine + 2 * other) % 3 for other in range(size)])
        received = torch.tensor([(other + 2 * mine) % 3 for other in range(size)])
        rows = contribution(c, dtype)
        return c.all_to_all_rows_start(torch.cat([rows, rows.flip(0)] * 4), axes, 2 * size, sent, received)

    return start


def permuting(axes: tuple[str, ...], dtype: torch.dtype, shift: int) -> Callable[[Communicator], Handle]:
    return lambda c: c.permute_start(contribution(c, dtype).transpose(0, 1), axes, shift)


class Joined:
    """The results of several handles in one tensor."""

    def __init__(self, handles: Sequence[Handle], wait_first: int) -> None:
        self._handles = handles
        self._wait_first = wait_first

    def wait(self) -> Tensor:
        """Wait for one first, then for the others."""
        order = sorted(range(len(self._handles)), key=lambda index: index != self._wait_first)
        results = {index: self._handles[index].wait() for index in order}
        shapes = torch.tensor([extent for index in sorted(results) for extent in results[index].shape])
        return torch.cat([shapes, *(results[index].flatten().double() for index in sorted(results))])


def bucketing(axes: tuple[str, ...], dtype: torch.dtype, wait_first: int) -> Callable[[Communicator], Handle]:
    """All three collectives of several tensors, each of three of unequal shapes, one of them not contiguous."""

    def start(communicator: Communicator) -> Handle:
        one = contribution(communicator, dtype)
        bucket = [one, one.transpose(0, 1).contiguous().transpose(0, 1)[:, :4], one[:, 0]]
        return Joined(
            [
                *communicator.all_reduce_coalesced_start(bucket, axes, "max"),
                *communicator.all_gather_coalesced_start(bucket, axes, (0, 2, 1)),
                *communicator.reduce_scatter_coalesced_start(bucket, axes, (1, 0, 1), "sum"),
            ],
            wait_first,
        )

    return start


def gathering_much(axes: tuple[str, ...]) -> Callable[[Communicator], Handle]:
    return lambda c: c.all_gather_start(large(c), axes, 0)


def reducing_much(axes: tuple[str, ...]) -> Callable[[Communicator], Handle]:
    return lambda c: c.all_reduce_start(large(c), axes, "max")


def contribution(communicator: Communicator, dtype: torch.dtype) -> Tensor:
    random = torch.Generator().manual_seed(communicator.rank)
    return (torch.randn(4, 8, 4, generator=random) * 2).to(dtype)


def large(communicator: Communicator) -> Tensor:
    """More than goes in one round of messages."""
    return torch.full((1 << 20,), float(communicator.rank), dtype=torch.float64)


def on_threads(start: Callable[[Communicator], Handle]) -> list[Tensor]:
    group = RankGroup(MESH, 20.0)
    handles = [start(group.communicator(rank)) for rank in range(MESH.ranks)]
    return [handle.wait() for handle in handles]


def refusals(program: Program, other: Program, small: Program) -> dict[str, str]:
    """What is said where the processes do not fit the program, or each other."""
    return {
        "hash": said(lambda: ProcessRank(other if join().rank == 2 else program)),
        "hashes": f"{program.hash[:12]} {other.hash[:12]}",
        "mesh": said(lambda: ProcessRank(small)),
    }


def said(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except StrettoError as error:
        return error.render()
    return "nothing"


class Grid(nn.Module):
    """The parameters of the grid program, one of them tied, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.randn(3))
        self.inner: Any = nn.Module()
        self.inner.w = nn.Parameter(torch.randn(5, 3))
        self.tied = self.inner.w
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("seen", torch.zeros(1))


def module_of_dtensors(program: Program) -> dict[str, Any]:
    """Two steps of AdamW on DTensor parameters, against the same on full ones."""
    torch.manual_seed(7)
    plain: Any = Grid()
    module: Any = Grid()
    module.load_state_dict(plain.state_dict())
    module.tied.marked = "yes"
    session = ProcessRank(program)
    before = list(module.state_dict())
    distribute_parameters(module, parameter_shards(program), session.world, program.mesh)
    distribute_parameters(module, parameter_shards(program), session.world, program.mesh)
    local = module.tied.to_local().shape
    ours, theirs = torch.optim.AdamW(module.parameters(), 0.1), torch.optim.AdamW(plain.parameters(), 0.1)
    x = torch.randn(6, 5)
    losses, seen = [], module.seen
    for _ in range(2):
        (loss, y), buffers = run(session, [module.tied, module.b], [seen], [x])
        seen = buffers["seen"]
        torch.autograd.backward(loss)
        norm = float(whole(nn.utils.clip_grad_norm_(module.parameters(), 10.0)))
        expected = ((x @ plain.tied + plain.b) ** 2).sum()
        expected.backward()
        expected_norm = float(nn.utils.clip_grad_norm_(plain.parameters(), 10.0))
        losses.append(float(loss.detach()) - float(expected.detach()))
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    full = {name: whole(parameter) for name, parameter in module.named_parameters()}
    return {
        "names": [before, list(module.state_dict())],
        "tied": module.tied is module.inner.w and module.tied.marked == "yes",
        "frozen": [module.frozen.requires_grad, isinstance(module.frozen, DTensor)],
        "local": list(local),
        "loss": max(map(abs, losses)),
        "norm": abs(norm - expected_norm) / expected_norm,
        "parameters": max(float((full[name] - parameter).abs().max()) for name, parameter in plain.named_parameters()),
        "state": list(ours.state[module.tied]["exp_avg"].to_local().shape),
        "y": [type(y).__name__, list(y.shape), list(part(y).shape)],
        "seen": float(seen),
        "misplaced": said(lambda: run(session, [replicated(module.tied), module.b], [seen], [x])),
    }


def whole(tensor: Any) -> Tensor:
    full: Tensor = tensor.full_tensor()
    return full


def part(tensor: Any) -> Tensor:
    local: Tensor = tensor.to_local()
    return local


def replicated(parameter: Any) -> Any:
    return parameter.detach().redistribute(placements=[torch.distributed.tensor.Replicate()] * 2).requires_grad_()


def plain_parameters(program: Program) -> dict[str, float]:
    """Full parameters get full gradients; a DTensor input is redistributed."""
    torch.manual_seed(3)
    w, b, x = torch.randn(5, 3, requires_grad=True), torch.randn(3, requires_grad=True), torch.randn(6, 5)
    session = ProcessRank(program)
    (loss, y), _ = run(session, [w, b], [torch.zeros(1)], [x])
    torch.autograd.backward(loss * 3)
    expected_w, expected_b = torch.autograd.grad(3 * ((x @ w + b) ** 2).sum(), [w, b])
    spread = dist.tensor.distribute_tensor(x, session.world.device_mesh(program.mesh), [dist.tensor.Shard(1)] * 2)
    (again, _), _ = run(session, [w.detach(), b.detach()], [torch.zeros(1)], [spread])
    assert w.grad is not None
    assert b.grad is not None
    return {
        "w": float((w.grad - expected_w).abs().max()),
        "b": float((b.grad - expected_b).abs().max()),
        "y": float((whole(y) - (x @ w + b)).abs().max()),
        "again": float(again) - float(loss.detach()),
    }


def unequal_seeds(program: Program) -> str:
    """What is said where one process was seeded otherwise."""
    torch.manual_seed(5 if join().rank == 3 else 4)
    module = Grid()
    return said(lambda: distribute_parameters(module, {}, join(), program.mesh))


def nested_shards() -> dict[str, Any]:
    """By axes and extent of a dim cut over both axes: this rank's part, and the whole tensor after a square root."""
    found = {}
    for axes, extent in ((("dp", "tp"), 8), (("dp", "tp"), 6), (("tp", "dp"), 8), (("tp", "dp"), 5)):
        module: Any = nn.Module()
        module.w = nn.Parameter(torch.arange(float(extent)) ** 2)
        chunk = -(-extent // 4)
        distribute_parameters(module, {"w": (Shard(0, axes, chunk, extent),)}, join(), MESH)
        found[f"{','.join(axes)} {extent}"] = module.w.to_local().sqrt().tolist(), whole(module.w.sqrt()).tolist()
    return found


def rotated_layers() -> float:
    """How far layers that wait for what the layers before them started are from one device."""
    from .. import rotated_module  # a launcher loads this file by its path, and has no package

    given = rotated_module.tensors(4)
    (found,), _ = ProcessRank(rotated_module.rotated(4)).forward(given[1:], [], given[:1])
    return float((whole(found) - rotated_module.expected(given)).abs().max())


def named_lanes() -> float:
    """How far a program that names lanes is from one device."""
    from .. import lane_module, rotated_module

    given = lane_module.tensors()
    program = rotated_module.lowered(lane_module.module())
    (found,), _ = ProcessRank(program).forward(given[1:], [], given[:1])
    return float((whole(found) - lane_module.expected(given)).abs().max())


def training(arguments: Any) -> Any:
    """Steps without end; rank 1 is killed in the middle of one, or leaves, or falls asleep."""
    program = Program.load(arguments["folder"])
    session = ProcessRank(program, timeout_s=arguments["timeout_s"])
    weights = [
        torch.ones(argument.shape, requires_grad=argument.requires_grad) for argument in program.of_kind("parameter")
    ]
    buffers = [torch.ones(argument.shape) for argument in program.of_kind("buffer")]
    inputs = [torch.ones(argument.shape) for argument in program.of_kind("input")]
    ends = time.monotonic() + 0.3
    if session.world.rank == 1 and arguments["end"] == "kill":
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    while True:
        if session.world.rank == 1 and time.monotonic() > ends:
            end(arguments["end"])
        outputs, _ = run(session, weights, buffers, inputs)
        torch.autograd.backward(outputs[0])


def end(how: str) -> None:
    match how:
        case "exit":
            os._exit(7)
        case "sleep":
            time.sleep(30)


def alone(arguments: Any) -> Any:
    """A process that is no part of a group: its environment, and what it was given. Its launcher gets SIGHUP."""
    os.kill(os.getppid(), signal.SIGHUP)
    print(f"rank {os.environ['RANK']} was here")
    return [arguments, {key: os.environ.get(key) for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS")}]


def failing(arguments: Any) -> Any:
    """A process with an error of its own."""
    raise ValueError(arguments)
