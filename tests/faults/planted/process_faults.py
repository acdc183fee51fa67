"""Faults of ranks that are processes, and the loops of two processes that show them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import stretto
import torch
import torch.distributed as dist
from stretto.diagnostics import StrettoError
from stretto.driver.model import clipping, rng_state, variants
from stretto.driver.state import weights
from stretto.runtime.processes import communicator, parameters, session, torch_collectives
from stretto.runtime.program.rank_ops import valid_extent
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .finding import Finder
from .source_faults import Plant, SourceFault, Wrong, around, value
from .training_loops import DATA, PIPELINE, Drops, Stages, adam, alike, data, pair

TENSOR = 'mesh (tp=2)\nshard "up" columns over tp\nshard "down" rows over tp\n'
CRASHES = (AssertionError, RuntimeError, TypeError, ValueError, LookupError, AttributeError, StrettoError)


class Uneven(nn.Module):
    """Five hidden units, which two ranks do not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.down(torch.tanh(self.up(x))) - y).square().mean()


def whole(tensor: Tensor) -> Tensor:
    """The global tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def alike_on_all_ranks(ours: nn.Module, plain: nn.Module) -> None:
    """Compare parameters and gradients with those of the plain model."""
    for (name, parameter), expected in zip(ours.named_parameters(), plain.parameters(), strict=True):
        alike(whole(parameter), expected)
        assert (parameter.grad is None) == (expected.grad is None), name
        if parameter.grad is not None and expected.grad is not None:
            alike(whole(parameter.grad), expected.grad)


def tensor(folder: Path) -> None:
    """Three steps with uneven shards."""
    plain, ours = pair(Uneven, TENSOR)
    for model in (plain, ours):
        optimizer = adam(model)
        for seed in range(3):
            optimizer.zero_grad()
            model(*data(seed)).backward()
            optimizer.step()
    alike_on_all_ranks(ours, plain)


def accumulation(folder: Path) -> None:
    """Two backwards, reduced once."""
    plain, ours = pair(Uneven, DATA)
    for seed in range(2):
        plain(*data(seed)).backward()
    with ours.no_sync():
        ours(*data(0)).backward()
    ours(*data(1)).backward()
    alike_on_all_ranks(ours, plain)


def clipping_by_norm(folder: Path) -> None:
    """Gradients are clipped by their norm over all ranks."""
    plain, ours = pair(Uneven, TENSOR)
    for model in (plain, ours):
        model(*data()).backward()
    alike(whole(stretto.clip_grad_norm_(ours, 0.1)), nn.utils.clip_grad_norm_(plain.parameters(), 0.1))
    alike_on_all_ranks(ours, plain)


def other_inputs(folder: Path) -> None:
    """Each process passes rows of its own, without saying so."""
    _, ours = pair(Uneven, TENSOR)
    refused(lambda: ours(*data(dist.get_rank())), "E0603")


def other_values(folder: Path) -> None:
    """Each process makes a model with values of its own."""
    refused(lambda: pair(Uneven, TENSOR, seed=int(stretto_rank())), "E0354")


def stretto_rank() -> str:
    """The rank, before the processes are connected."""
    import os

    return os.environ["RANK"]


def refused(call: Callable[[], object], code: str) -> None:
    """Raise AssertionError unless the call raises this error."""
    try:
        call()
    except StrettoError as error:
        assert error.code == code, error
        return
    raise AssertionError(f"expected {code}")


def files(folder: Path) -> None:
    """Weights are saved by both processes together, and read by each."""
    plain, ours = pair(Uneven, TENSOR)
    stretto.save_weights(ours, folder / "weights.safetensors")
    other, again = pair(Uneven, TENSOR, 3)
    stretto.load_weights(other, folder / "weights.safetensors")
    stretto.load_weights(again, folder / "weights.safetensors")
    alike_on_all_ranks(other, plain)
    alike_on_all_ranks(again, plain)


def state_dict(folder: Path) -> None:
    """A full state dict is loaded into a model of which each process has a part."""
    plain, _ = pair(Uneven, TENSOR)
    _, ours = pair(Uneven, TENSOR, 3)
    ours.load_state_dict(copy.deepcopy(plain.state_dict()))
    alike_on_all_ranks(ours, plain)


def dropout(folder: Path) -> None:
    """Processes that hold the same rows drop the same elements: equal columns get equal gradients."""
    _, ours = pair(Drops, 'mesh (tp=2)\nshard "up" columns over tp\n')
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.fill_(0.5)
    x, y = data()
    ours(x, torch.zeros_like(y)).backward()
    gradient = whole(ours.up.weight.grad)
    assert gradient.any()
    alike(gradient, gradient[:1].expand_as(gradient))


def pipeline(folder: Path) -> None:
    """Two stages, of which one may have no parameter."""
    plain, ours = pair(Stages, PIPELINE)
    losses = []
    for model in (plain, ours):
        loss = model(*data())
        (3.0 * loss).backward()
        losses.append(loss)
    alike(*losses)
    own = {name: parameter for name, parameter in ours.named_parameters() if parameter.to_local().numel()}
    for name, parameter in own.items():
        assert parameter.grad is not None, name
        alike(parameter.grad.to_local(), plain.get_parameter(name).grad)


LOOPS: dict[str, Callable[[Path], None]] = {
    loop.__name__: loop
    for loop in (
        tensor,
        accumulation,
        clipping_by_norm,
        other_inputs,
        other_values,
        files,
        state_dict,
        dropout,
        pipeline,
    )
}


def fault(where: str, plant: Plant, scenario: str) -> SourceFault:
    return SourceFault(where, plant, Finder.PROCESSES, scenario=scenario)


def first_twice(parts: Tensor, reduce: str, order: Any) -> Tensor:
    return torch_collectives._COMBINE[reduce](parts[order[0]], parts[order[0]])


def never_filled(right: Wrong) -> Wrong:
    """The padded copy of a parameter is left zero."""

    def wrong(self: Any, distributed: DTensor) -> Tensor:
        local: Tensor = right(self, distributed)
        return torch.zeros_like(local) if self._padded else local

    return wrong


def from_the_end(local: Tensor, layout: Any, mesh: Any, rank: int) -> Tensor:
    for shard in layout:
        valid = valid_extent(mesh.coordinate(rank, shard.axes), shard.chunk, shard.extent)
        local = local.narrow(shard.dim, shard.chunk - valid, valid)
    return local


def first_part(own: DTensor, local: Tensor) -> Tensor:
    shape, _ = parameters.local_window(own)
    for dim, extent in enumerate(shape):
        local = local.narrow(dim, 0, extent)
    return local


def not_delayed(right: Wrong) -> Wrong:
    """A delayed reduction of gradients is left out."""

    def wrong(self: Any, local: Tensor, axes: Any, reduce: str, where: str = "") -> Any:
        if where.startswith("reducing gradient"):
            return communicator.Completed(local)
        return right(self, local, axes, reduce, where)

    return wrong


def offsets_by_own_extent(right: Wrong) -> Wrong:
    """A process's part begins at its rank times its own extent, which is wrong for the short last part."""

    def wrong(distributed: DTensor) -> Any:
        shape, offsets = right(distributed)
        return shape, tuple(
            dist.get_rank() * extent if start else 0 for extent, start in zip(shape, offsets, strict=True)
        )

    return wrong


def seed_and_rank(right: Wrong) -> Wrong:
    """Each process adds its rank to the seed, after seeds were compared."""

    def wrong(self: Any, session: Any) -> None:
        right(self, session)
        session.rng_state = replace(session.rng_state, seed=session.rng_state.seed + dist.get_rank())

    return wrong


def all_ones(right: Wrong) -> Wrong:
    return lambda *args: [torch.ones_like(tangent) for tangent in right(*args)]


PROCESS_FAULTS: dict[str, SourceFault] = {
    "a sum takes the first process twice": fault(
        "runtime/processes/torch_collectives: reduce_parts",
        value(torch_collectives, "reduce_parts", first_twice),
        "tensor",
    ),
    "a padded parameter is never filled": fault(
        "runtime/processes/parameters: padded", around(parameters.Layout, "padded", never_filled), "tensor"
    ),
    "the valid part of a shard is taken from its end": fault(
        "runtime/rank/shards: valid_part", value(parameters, "valid_part", from_the_end), "tensor"
    ),
    "a delayed reduction is left out": fault(
        "runtime/processes/session: reduce",
        around(communicator.DistributedCommunicator, "all_reduce_start", not_delayed),
        "accumulation",
    ),
    "gradients are clipped by each process's own norm": fault(
        "driver/model/clipping: _over_ranks",
        value(clipping, "_over_ranks", lambda norm, mesh, dims, p: norm),
        "clipping_by_norm",
    ),
    "inputs of processes are not compared": fault(
        "driver/model/distribution: check_same_inputs",
        value(variants, "check_same_inputs", lambda call, world: None),
        "other_inputs",
    ),
    "first values of processes are not compared": fault(
        "runtime/processes/parameters: _check_equal",
        value(parameters, "_check_equal", lambda replaced, world: None),
        "other_values",
    ),
    "a process saves its own part of a weight": fault(
        "driver/state/state_tensors: full_tensor",
        value(weights, "full_tensor", lambda own: (own.to_local() if isinstance(own, DTensor) else own).detach()),
        "files",
    ),
    "a short part is read from the wrong place": fault(
        "runtime/processes/parameters: local_window", around(weights, "local_window", offsets_by_own_extent), "files"
    ),
    "every process loads the first part": fault(
        "runtime/processes/parameters: _local_part", value(parameters, "_local_part", first_part), "state_dict"
    ),
    "processes draw with seeds of their own": fault(
        "driver/model/rng_state: advance", around(rng_state.ModelRngState, "advance", seed_and_rank), "dropout"
    ),
    "the loss's tangent is taken as 1": fault(
        "runtime/processes/session: backward", around(session, "tangents_or_zero", all_ones), "pipeline"
    ),
}
