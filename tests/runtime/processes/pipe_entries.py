"""What the processes of `test_pipeline_processes.py` run: one process is one rank; results are JSON."""

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


def everything(arguments: Any) -> Any:
    """All that four processes can show in one launch."""
    folder = Path(arguments["folder"])
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
        for each in tensors:
            communicator.send(each, "pp", other, "a send")
        handles = [communicator.receive_start("pp", other, each.shape, each.dtype, "a receive") for each in tensors]
        return [torch.equal(handle.wait().float(), each.float()) for handle, each in zip(handles, tensors, strict=True)]


def plain(program: Program) -> list[float]:
    """How far gradients of plain parameters are from those of one device, times two; and a buffer."""
    b, a, x = given()
    expected = torch.autograd.grad(((x @ a @ b) ** 2).sum(), [b, a])
    session = ProcessRank(program, replicas=Replicas.CHECK)
    _, state = session.forward([b, a], [ONE.expand(1)], [x])
    got = session.backward(state, [2 * ONE])
    pairs = zip(("b", "a"), expected, strict=True)
    return [*(float((got[name] - 2 * each).abs().max()) for name, each in pairs), float(state.buffers["seen"])]


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
    homes = [program.owning_stage(each) for each in program.of_kind("parameter")]
    world, mesh = session.world, program.mesh
    held = [distribute_parameter(each, (), world, mesh, home) for each, home in zip((b, a), homes, strict=True)]
    plain = [nn.Parameter(each.detach().clone()) for each in (b, a)]
    ours, theirs = torch.optim.AdamW(held, 0.1), torch.optim.AdamW(plain, 0.1)
    for _ in range(2):
        (loss,), _ = run(session, held, [ONE.expand(1)], [x])
        torch.autograd.backward(loss)
        torch.autograd.backward(((x @ plain[1] @ plain[0]) ** 2).sum())
        grads = [each.grad is not None for each in held]
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    both = zip([full(each) for each in held], plain, strict=True)
    misplaced = distribute_parameter(b, (), world, mesh)
    return {
        "far": max(float((one - other).abs().max()) for one, other in both),
        "here": [has_local_part(each) for each in held],
        "local": [list(local(each).shape) for each in held],
        "grads": grads,
        "misplaced": said(session, [misplaced, held[1]], x),
    }


def swapped(program: Program) -> dict[str, Any]:
    """A step on parameters that stand on the stage that does not use them."""
    b, a, x = given()
    expected = torch.autograd.grad(((x @ a @ b) ** 2).sum(), [b, a])
    session = ProcessRank(program)
    world, mesh = session.world, program.mesh
    held = [distribute_parameter(each, (), world, mesh, ("pp", stage)) for stage, each in enumerate((b, a))]
    (loss,), _ = run(session, held, [ONE.expand(1)], [x])
    torch.autograd.backward(loss)
    pairs = [(each.grad, one) for each, one in zip(held, expected, strict=True)]
    return {
        "here": [each.grad is not None for each in held],
        "far": max(float((local(grad) - one).abs().max()) for grad, one in pairs if grad is not None),
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
    communicator._connected()._watchdog.timeout_s = 1.0
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
