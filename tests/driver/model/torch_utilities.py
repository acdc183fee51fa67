"""torch's own utilities on a model whose ranks are processes; each function runs in one process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import stretto
import torch
from stretto.runtime.processes.dtensor import ELEMENTWISE, WRITING, DistributedTensor
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from .differing_ranks import Net

_OF_ONE = ("sqrt", "neg", "abs", "reciprocal", "zero", "square", "fill")


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def copies(rank: int) -> dict[str, float]:
    """The largest difference between a copy and what it was copied from."""
    torch.manual_seed(0)
    plan = 'mesh (tp=2)\nshard "up" columns over tp\nshard "down" rows over tp\n'
    model: Any = stretto.compile(Net(width=7), plan=plan)
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.ones(4, 6)
    model(x).backward()
    optimizer.step()
    copied, averaged = copy.deepcopy(model), AveragedModel(model)
    averaged.update_parameters(model)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    parameter = copy.deepcopy(model.up.weight)
    with torch.no_grad():
        outputs = {"model": copied(x) - model(x), "average": averaged(x) - model(x)}
        kept = model.up.weight.full_tensor()
        parameter.zero_()
        outputs["parameter"] = model.up.weight.full_tensor() - kept
    pairs = zip(copied.parameters(), model.parameters(), strict=True)
    differences = {f"copy {n}": whole(a) - whole(b) for n, (a, b) in enumerate(pairs)}
    gradient = whole(copied.up.weight.grad) - whole(model.up.weight.grad)
    everything = {**outputs, **differences, "gradient": gradient}
    return {name: float(each.detach().abs().max()) for name, each in everything.items()}


def hooks(rank: int) -> list[Any]:
    """How often hooks of parameters ran, and whether a gradient that a hook doubles is doubled, under a pipeline."""
    torch.manual_seed(0)
    plain = Net()
    model: Any = stretto.compile(
        copy.deepcopy(plain), plan='mesh (pp=2)\npipeline over pp { microbatches 2 split "down" }\n'
    )
    calls = []
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: calls.append(gradient) or gradient * 2)
    x = torch.randn(4, 6)
    model(x).backward()
    plain(x).backward()
    gradients = zip(model.parameters(), plain.parameters(), strict=True)
    own = [(p.grad.to_local(), 2 * q.grad) for p, q in gradients if p.grad is not None and q.grad is not None]
    return [len(calls), [bool(torch.allclose(a, b)) for a, b in own]]


def optimizers(rank: int) -> dict[str, str]:
    """What each optimizer does to a model with uneven shards: "as plain", or the code of its refusal."""
    makers: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
        "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
        "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
    }
    return {name: _trained(make) for name, make in makers.items()}


def _trained(make: Callable[[Any], torch.optim.Optimizer]) -> str:
    torch.manual_seed(0)
    plain: Any = Net(width=7).double()
    model: Any = stretto.compile(copy.deepcopy(plain), plan='mesh (tp=2)\nshard "up" columns over tp\n')
    x = torch.randn(4, 6, dtype=torch.float64)
    try:
        for each in (model, plain):
            optimizer = make(each.parameters())

            def closure(each: nn.Module = each, optimizer: torch.optim.Optimizer = optimizer) -> Any:
                optimizer.zero_grad()
                loss = each(x)
                loss.backward()
                return loss

            optimizer.step(closure)
    except stretto.StrettoError as error:
        return error.code
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    return "as plain" if all(torch.allclose(p.full_tensor(), q, atol=1e-9) for p, q in pairs) else "differs"


def clips(rank: int) -> str:
    """torch's clipping where a stage has no gradients: every rank is told, also the one that has nothing to clip."""
    torch.manual_seed(0)
    net = Net()
    for parameter in net.up.parameters():
        parameter.requires_grad_(False)
    model: Any = stretto.compile(net, plan='mesh (pp=2)\npipeline over pp { microbatches 2 split "down" }\n')
    model(torch.randn(4, 6)).backward()
    try:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    except stretto.StrettoError as error:
        return error.code
    return "clipped"


class _SeesDTensors(TorchDispatchMode):
    """Lists the operations that go through DTensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            self.seen.append(str(op))
        return op(*args, **(kwargs or {}))


def updates(rank: int) -> dict[str, Any]:
    """Elementwise functions on uneven shards against plain tensors: the largest difference, and what DTensor saw."""
    generator = torch.Generator().manual_seed(0)
    mesh = init_device_mesh("cpu", (2,))
    make: Any = DistributedTensor

    def both(placement: Any) -> tuple[Tensor, Tensor]:
        full = torch.rand(5, 3, generator=generator, dtype=torch.float64) + 0.5
        cut = distribute_tensor(full.clone(), mesh, [placement], src_data_rank=None)
        return full, make(cut._local_tensor, cut._spec, requires_grad=False)

    wrong, seen = {}, _SeesDTensors()
    for function in (*WRITING, *ELEMENTWISE):
        name = f"{function.__name__}"
        for others in (Shard(0), Replicate()):
            count = 3 if "addc" in name else 1 if name.strip("_") in _OF_ONE else 2
            pairs = [both(Shard(0)), *(both(others) for _ in range(count - 1))]
            more = (0.3,) if "lerp" in name else ()
            more = (0.25,) if "fill" in name else more
            with torch.no_grad():
                expected = function(*(full for full, _ in pairs), *more)
                with seen if others == Shard(0) or count == 1 else nullcontext():
                    got = function(*(cut for _, cut in pairs), *more)
            error = float((got.full_tensor() - expected).abs().max())
            kept = got is pairs[0][1] if function in WRITING else type(got) is DistributedTensor
            if error > 1e-12 or not kept:
                wrong[f"{name} {others}"] = error
    parameters = [nn.Parameter(both(placement)[1]) for placement in (Shard(0), Replicate())]
    optimizer = torch.optim.AdamW(parameters)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = both(parameter.placements[0])[1]
        with seen if optimizer.state else nullcontext():  # the first step makes the states
            optimizer.step()
    version = parameters[0]._version
    with torch.no_grad():
        parameters[0].mul_(2.0)
    tracked = parameters[0].mul(2.0).grad_fn is not None
    return {"wrong": wrong, "by DTensor": seen.seen, "counted": parameters[0]._version > version, "tracked": tracked}
