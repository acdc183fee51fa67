"""Training loops as users write them, each beside plain PyTorch: what their own tests would compare.

A loop raises AssertionError where a compiled model does something else than the plain one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path

import stretto
import torch
from torch import Tensor, nn
from torch.nn import functional as F

TENSOR = """mesh (dp=2, tp=2)
shard "up" columns over tp
shard "down" rows over tp
"""
DATA = "mesh (dp=2)\n"
PIPELINE = """mesh (pp=2)
pipeline over pp { schedule 1f1b  microbatches 2 }
"""


class Net(nn.Module):
    """Batch norm between two layers of equal shape, a scale that users change, two losses."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.scale = 1.0

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.norm(self.up(x)))
        error = self.scale * self.down(hidden) - y
        return {"loss": error.square().mean(), "size": hidden.square().sum()}


class Stages(nn.Module):
    """Two equal layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return (x - y).square().mean()


class Tied(nn.Module):
    """An embedding that is the head, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.embed(x)), y)


class Drops(nn.Module):
    """Dropout of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 6)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.up(F.dropout(x, 0.5, self.training)) - y).square().mean()


class Branches(nn.Module):
    """Long sequences are computed otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.table = nn.Linear(6, 6), nn.Parameter(torch.randn(12, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.table[:1].expand(x.shape[0], 1, 6), x], 1)
        x = x + self.table[: x.shape[1]]
        if x.shape[1] > 6:
            x = 2 * x
        return self.up(x).square().mean()


def data(seed: int = 0, rows: int = 8) -> tuple[Tensor, Tensor]:
    """A batch of floats."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(rows, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, y


def pair(make: Callable[[], nn.Module], plan: str, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A plain model in float64, and a compiled one of the same values."""
    torch.manual_seed(seed)
    plain = make().double()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.5)
    return plain, stretto.compile(copy.deepcopy(plain), plan=plan)


def alike(ours: Tensor, theirs: Tensor) -> None:
    """Raise AssertionError unless they are equal but for rounding."""
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-9, atol=1e-12)


def models_alike(ours: nn.Module, theirs: nn.Module) -> None:
    """Compare all parameters, gradients and buffers."""
    theirs_by_name = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        alike(parameter, theirs_by_name[name])
        expected = theirs_by_name[name].grad
        assert (parameter.grad is None) == (expected is None), name
        if parameter.grad is not None and expected is not None:
            alike(parameter.grad, expected)
    buffers = dict(theirs.named_buffers())
    for name, buffer in ours.named_buffers():
        alike(buffer, buffers[name])


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer with state; its epsilon keeps a gradient that is zero but for rounding from moving anything."""
    return torch.optim.AdamW(model.parameters(), lr=0.05, eps=1e-2)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int]) -> list[float]:
    """Some steps; the losses."""
    losses = []
    for step in steps:
        optimizer.zero_grad()
        result = model(*data(step))
        loss = result["loss"] if isinstance(result, dict) else result
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def steps(folder: Path) -> None:
    """Three steps of AdamW."""
    plain, ours = pair(Net, TENSOR)
    assert_close(train(ours, adam(ours), range(3)), train(plain, adam(plain), range(3)))
    models_alike(ours, plain)


def assert_close(ours: list[float], theirs: list[float]) -> None:
    """Compare losses."""
    alike(torch.tensor(ours, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64))


def evaluation(folder: Path) -> None:
    """A step, an evaluation, a step."""
    plain, ours = pair(Net, TENSOR)
    for model in (plain, ours):
        train(model, adam(model), range(1))
        model.eval()
    with torch.no_grad():
        alike(ours(*data(5))["loss"], plain(*data(5))["loss"])
    for model in (plain, ours):
        train(model.train(), adam(model), range(1))
    models_alike(ours, plain)


def freezing(folder: Path) -> None:
    """A layer is frozen, and trained again."""
    plain, ours = pair(Net, TENSOR)
    for trained in (False, True, False):
        for model in (plain, ours):
            model.zero_grad()
            model.up.requires_grad_(trained)
            model(*data())["loss"].backward()
        models_alike(ours, plain)


def attribute(folder: Path) -> None:
    """A number that the forward reads is changed."""
    plain, ours = pair(Net, TENSOR)
    for scale in (1.0, 2.0):
        plain.scale = ours.scale = scale
        alike(ours(*data())["loss"], plain(*data())["loss"])


def losses(folder: Path) -> None:
    """Two results are differentiated, with tangents of their own."""
    plain, ours = pair(Net, TENSOR)
    for model in (plain, ours):
        result = model(*data())
        (3.0 * result["loss"] + 0.25 * result["size"]).backward()
    models_alike(ours, plain)


def inputs(folder: Path) -> None:
    """The gradients of two inputs."""
    plain, ours = pair(Net, TENSOR)
    gradients = []
    for model in (ours, plain):
        x, y = (tensor.requires_grad_() for tensor in data())
        model(x, y)["loss"].backward()
        gradients.append((x.grad, y.grad))
    for own, expected in zip(*gradients, strict=True):
        assert own is not None and expected is not None
        alike(own, expected)


def accumulation(folder: Path) -> None:
    """Three backwards before the gradients are reduced once."""
    plain, ours = pair(Net, DATA)
    for seed in range(3):
        plain(*data(seed))["loss"].backward()
    with ours.no_sync():
        for seed in range(2):
            ours(*data(seed))["loss"].backward()
    ours(*data(2))["loss"].backward()
    models_alike(ours, plain)
    for model in (plain, ours):
        model.zero_grad()
        model(*data(3))["loss"].backward()
    models_alike(ours, plain)


def clipping(folder: Path) -> None:
    """Gradients are clipped, and small ones left alone."""
    plain, ours = pair(Net, TENSOR)
    for greatest in (0.1, 1e3):
        for model in (plain, ours):
            model.zero_grad()
            model(*data())["loss"].backward()
        norm = stretto.clip_grad_norm_(ours, greatest)
        alike(norm, nn.utils.clip_grad_norm_(plain.parameters(), greatest))
        models_alike(ours, plain)


def pipeline(folder: Path) -> None:
    """A pipeline, its loss scaled, and its own step with a scale."""
    plain, ours = pair(Stages, PIPELINE)
    for model in (plain, ours):
        (3.0 * model(*data())).backward()
    models_alike(ours, plain)
    (0.5 * plain(*data(1))).backward()
    ours.step(*data(1), scale=0.5)
    models_alike(ours, plain)


def resume(folder: Path) -> None:
    """A run goes on from its second checkpoint, with dropout, a schedule of rates and the optimizer's state."""
    _, ours = pair(Drops, DATA)
    optimizer = adam(ours)
    path = folder / "checkpoint"
    for step in range(2):
        train(ours, optimizer, [step])
        optimizer.param_groups[0]["lr"] = 0.01
        stretto.save_checkpoint(path, ours, optimizer, step=step)
    expected = train(ours, optimizer, range(2, 4))
    _, again = pair(Drops, DATA, 7)
    other = adam(again)
    assert stretto.load_checkpoint(path, again, other) == {"step": 1}
    assert_close(train(again, other, range(2, 4)), expected)


def optimizer_state(folder: Path) -> None:
    """A checkpoint holds each parameter's own state, in torch's form."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    plain, ours = pair(Net, TENSOR)
    theirs = adam(plain)
    optimizer = adam(ours)
    train(plain, theirs, range(2))
    train(ours, optimizer, range(2))
    stretto.save_checkpoint(folder / "state", ours, optimizer)
    _, again = pair(Net, TENSOR, 3)
    loaded = adam(again)
    stretto.load_checkpoint(folder / "state", again, loaded)
    own = get_optimizer_state_dict(again, loaded)["state"]
    for name, values in get_optimizer_state_dict(plain, theirs)["state"].items():
        for key, value in values.items():
            alike(torch.as_tensor(own[name][key]), torch.as_tensor(value))


def weights(folder: Path) -> None:
    """Weights and statistics are saved, and read by name."""
    plain, ours = pair(Net, TENSOR)
    for model in (plain, ours):
        train(model, adam(model), range(1))
    stretto.save_weights(ours, folder / "weights.safetensors")
    again, other = pair(Net, TENSOR, 3)
    stretto.load_weights(other, folder / "weights.safetensors")
    stretto.load_weights(again, folder / "weights.safetensors")
    for model in (again, other, plain, ours):
        model.zero_grad()
    models_alike(other, plain)
    models_alike(again, plain)


def tied(folder: Path) -> None:
    """A model without memory is filled from a file, and its tied weight stays one."""
    plain, ours = pair(Tied, DATA)
    stretto.save_weights(ours, folder / "tied.safetensors")
    torch.set_default_dtype(torch.float64)
    try:
        with stretto.meta_parameters():
            model = Tied()
    finally:
        torch.set_default_dtype(torch.float32)
    filled = stretto.compile(model, plan=DATA, weights=folder / "tied.safetensors")
    x = torch.arange(8)
    for each in (plain, filled):
        optimizer = adam(each)
        each(x, (x + 1) % 9).backward()
        optimizer.step()
    models_alike(filled, plain)
    assert filled.head.weight is filled.embed.weight


def dropout(folder: Path) -> None:
    """Steps drop other elements, other seeds draw other numbers, and a seed draws the same again."""
    _, ours = pair(Drops, DATA)

    def drawn(seed: int, forwards: int) -> list[float]:
        torch.manual_seed(seed)
        return [ours(*data()).item() for _ in range(forwards)]

    one, two = drawn(1, 2), drawn(2, 2)
    assert len({*one, *two}) == 4
    assert_close(drawn(1, 2), one)
    _, again = pair(Drops, DATA)
    torch.manual_seed(1)
    assert_close([again(*data()).item() for _ in range(2)], one)
    ours.eval()
    alike(ours(*data()), again.eval()(*data()))


def large_logits(folder: Path) -> None:
    """A loss over a sharded vocabulary whose logits would overflow without the subtraction of their maximum."""
    plain, ours = pair(Tied, 'mesh (tp=2)\nshard "embed" vocab over tp\n')
    for model in (plain, ours):
        with torch.no_grad():
            model.embed.weight.mul_(100)
        x = torch.arange(8)
        model(x, (x + 1) % 9).backward()
    models_alike(ours, plain)


def dynamic(folder: Path) -> None:
    """Sizes that differ from call to call, on both sides of a branch."""
    torch.manual_seed(0)
    plain = Branches().double()
    sizes = {"x": {0: "batch", 1: ("seq", 2, 11)}}
    ours = stretto.compile(copy.deepcopy(plain), plan=DATA, dynamic=sizes)
    for batch, seq in ((4, 3), (6, 4), (7, 5), (4, 8), (10, 4), (5, 11)):
        x = torch.randn(batch, seq, 6, dtype=torch.float64)
        for model in (plain, ours):
            model.zero_grad()
            model(x).backward()
        models_alike(ours, plain)


LOOPS: dict[str, Callable[[Path], None]] = {
    loop.__name__: loop
    for loop in (
        steps, evaluation, freezing, attribute, losses, inputs, accumulation, clipping, pipeline, resume,
        optimizer_state, weights, tied, dropout, large_logits, dynamic,
    )
}  # fmt: skip
