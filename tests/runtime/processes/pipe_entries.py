"""What the processes of `test_pipeline_processes.py` run: one process is one rank."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from stretto.diagnostics import StrettoError
from stretto.runtime import Program
from stretto.runtime.processes.communicator import DistributedCommunicator
from stretto.runtime.processes.jobs import check_entry
from stretto.runtime.processes.parameters import distribute_parameter, has_local_part
from stretto.runtime.processes.session import ProcessRank
from stretto.runtime.processes.world import join
from stretto.runtime.program.mesh import RankMesh
from stretto.runtime.rank.autograd import run
from stretto.runtime.threads.session import Replicas
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

ONE = torch.ones((), dtype=torch.float64)


def everything(_rank: int, folder: Path) -> Any:
    """All that four processes can show in one launch."""
    return {
        "exchanged": exchanged(),
        "plain": plain(Program.load(folder / "train")),
        "delayed": plain(Program.load(folder / "delayed")),
        "infer": infer(Program.load(folder / "infer")),
        "dtensors": dtensors(Program.load(folder / "train")),
        "swapped": [swapped(Program.load(folder / name)) for name in ("train", "delayed")],
        "check": check_entry({"folder": str(folder / "train"), "steps": 3, "seed": 1})["passed"],  # type: ignore
        "silent": silent(),
    }


def given() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    b, a = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 2), (3, 4)))
    return b, a, torch.randn(8, 3, dtype=torch.float64)


def connected() -> DistributedCommunicator:
    return DistributedCommunicator(join(), RankMesh((("pp", 2), ("dp", 2))), messages=join().messages)


def exchanged() -> list[bool]:
    """Whether messages of many kinds come as they were sent, in order, to the peer on the axis."""
    communicator, rank = connected(), join().rank
    other = 1 - rank // 2
    tensors = [
        torch.arange(4.0) + rank % 2,
        torch.ones(3, 2).t(),
        torch.ones((), dtype=torch.bfloat16),
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.ones(2, dtype=torch.float8_e4m3fn),
        torch.rand(300, 500, generator=torch.Generator().manual_seed(rank % 2)),
    ]
    with communicator.step():
        for tensor in tensors:
            communicator.send(tensor, "pp", other, "a send")
        handles = [
            communicator.receive_start("pp", other, tensor.shape, tensor.dtype, "a receive") for tensor in tensors
        ]
        return [
            torch.equal(handle.wait().float(), tensor.float()) for handle, tensor in zip(handles, tensors, strict=True)
        ]


def plain(program: Program) -> list[float]:
    """How far gradients of plain parameters are from those of one device, times two; and a buffer."""
    b, a, x = given()
    expected = torch.autograd.grad(((x @ a @ b) ** 2).sum(), [b, a])
    session = ProcessRank(program, replicas=Replicas.CHECK)
    _, state = session.forward([b, a], [ONE.expand(1)], [x])
    got = session.backward(state, [2 * ONE])
    pairs = zip(("b", "a"), expected, strict=True)
    return [*(float((got[name] - 2 * value).abs().max()) for name, value in pairs), float(state.buffers["seen"])]


def infer(program: Program) -> float:
    """How far the outputs are from those of one device."""
    b, a, x = given()
    (y,), _ = ProcessRank(program, replicas=Replicas.CHECK).forward([b, a], [], [x])
    whole = y.full_tensor() if isinstance(y, DTensor) else y
    return float((whole - x @ a @ b).detach().abs().max())


def dtensors(program: Program) -> dict[str, Any]:
    """Two steps of AdamW on parameters that their stages hold."""
    b, a, x = given()
    session = ProcessRank(program)
    homes = [program.owning_stage(argument) for argument in program.of_kind("parameter")]
    world, mesh = session.world, program.mesh
    parameters = [distribute_parameter(value, (), world, mesh, home) for value, home in zip((b, a), homes, strict=True)]
    plain = [nn.Parameter(value.detach().clone()) for value in (b, a)]
    ours, theirs = torch.optim.AdamW(parameters, 0.1), torch.optim.AdamW(plain, 0.1)
    for _ in range(2):
        (loss,), _ = run(session, parameters, [ONE.expand(1)], [x])
        torch.autograd.backward(loss)
        torch.autograd.backward(((x @ plain[1] @ plain[0]) ** 2).sum())
        grads = [parameter.grad is not None for parameter in parameters]
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    both = zip([full(parameter) for parameter in parameters], plain, strict=True)
    misplaced = distribute_parameter(b, (), world, mesh)
    return {
        "far": max(float((actual - other).abs().max()) for actual, other in both),
        "here": [has_local_part(parameter) for parameter in parameters],
        "local": [list(local(parameter).shape) for parameter in parameters],
        "grads": grads,
        "misplaced": said(session, [misplaced, parameters[1]], x),
    }


def swapped(program: Program) -> dict[str, Any]:
    """A step on parameters that stand on the stage that does not use them."""
    b, a, x = given()
    expected = torch.autograd.grad(((x @ a @ b) ** 2).sum(), [b, a])
    session = ProcessRank(program)
    world, mesh = session.world, program.mesh
    parameters = [distribute_parameter(weight, (), world, mesh, ("pp", stage)) for stage, weight in enumerate((b, a))]
    (loss,), _ = run(session, parameters, [ONE.expand(1)], [x])
    torch.autograd.backward(loss)
    pairs = [(parameter.grad, value) for parameter, value in zip(parameters, expected, strict=True)]
    return {
        "here": [parameter.grad is not None for parameter in parameters],
        "far": max(float((local(grad) - value).abs().max()) for grad, value in pairs if grad is not None),
    }


def full(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor()
    return whole.detach()


def local(tensor: Any) -> Tensor:
    part: Tensor = tensor.to_local()
    return part


def said(session: ProcessRank, parameters: list[nn.Parameter], x: Tensor) -> str:
    """What is said of a parameter that is not on its stage, by the ranks of the stage; the others are not asked."""
    if session.world.rank < 2:
        return ""
    try:
        session._part(session.program.of_kind("parameter")[0], parameters[0])
    except StrettoError as error:
        return error.render()
    return "nothing"


def silent() -> dict[str, Any]:
    """Rank 2 waits for a message that rank 0 never sends; the other ranks wait for other things."""
    communicator = connected()
    communicator._checked_messages()._watchdog.timeout_s = 1.0
    join().watchdog.timeout_s = 1.0
    started = time.monotonic()
    try:
        if join().rank == 2:
            communicator.receive_start("pp", 0, [1], torch.float32, "the receive").wait()
        elif join().rank == 3:
            time.sleep(0.3)
            communicator.receive_start("pp", 0, [1], torch.float32, "another receive").wait()
    except StrettoError as error:
        return {"said": error.render(), "took": time.monotonic() - started}
    time.sleep(4)
    return {"said": "", "took": 0.0}
