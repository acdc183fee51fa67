"""Images cut on height and width: values are those of one device, and ranks send the rows that windows reach.

`tests/passes/partition/images/test_halos.py` has each op by itself, with uneven chunks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import stretto
import torch
from stretto.diagnostics import StrettoError
from stretto.frontend.targets.load_target import load_target
from stretto.frontend.targets.target import Request
from stretto.runtime.checks.program_check import check
from stretto.runtime.processes.jobs import check_entry
from stretto.runtime.prover import prove
from stretto.runtime.threads.communicator import RankGroup
from stretto.runtime.threads.rendezvous import Call
from torch import Tensor, nn
from torch.nn import functional as F

from ..forked_ranks import values_of_ranks
from ..models.zoo import target_of
from ..subsets import only
from .checking import assert_report, compiled_model
from .traffic import kinds, messages

BATCH, CHANNELS, HEIGHT, WIDTH = 3, 4, 8, 12


class Convolutions(nn.Module):
    """Two convolutions and nothing else: the first one's input needs no gradient."""

    def __init__(self, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, padding)
        self.norm = nn.GroupNorm(2, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        loss: Tensor = self.norm(self.second(self.first(x))).square().sum()
        return loss


class Everything(nn.Module):
    """A net of the kinds of ops that exchange halos, down and up again, on sizes that do not fit their strides."""

    def __init__(self, spaces: int = 2) -> None:
        super().__init__()
        convolution, transposed = getattr(nn, f"Conv{spaces}d"), getattr(nn, f"ConvTranspose{spaces}d")
        self.spaces, self.mode = spaces, {1: "linear", 2: "bilinear", 3: "trilinear"}[spaces]
        self.stem = convolution(3, 8, 3, padding=1)
        self.batch_norm = getattr(nn, f"BatchNorm{spaces}d")(8)
        self.wide = convolution(8, 8, 3, padding=2, dilation=2, groups=2)
        self.norm = nn.GroupNorm(2, 8)
        self.shrink = convolution(8, 8, 3, stride=2, padding=1)
        self.grow = transposed(8, 8, 4, stride=2, padding=1)
        self.head = convolution(16, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        pool, average = getattr(F, f"max_pool{self.spaces}d"), getattr(F, f"avg_pool{self.spaces}d")
        y = F.silu(self.norm(self.wide(F.relu(self.batch_norm(self.stem(x))))))
        low = F.silu(self.shrink(average(pool(y, 2), 3, 1, 1)))
        low = F.interpolate(self.grow(low), scale_factor=2.0, mode=self.mode)
        loss: Tensor = self.head(F.pad(torch.cat([y, low], 1), [1] * 2 * self.spaces, mode="reflect")).square().mean()
        return loss


def _plan(mesh: str, *cuts: str, names: str = "") -> str:
    return "\n".join([f"mesh ({mesh})", *(f"shard inputs {names} {cut}" for cut in cuts)])


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """By kind, the elements of images that rank 0 sends to others."""
    counts: Counter[str] = Counter()
    join = RankGroup.join

    def counted(
        self: RankGroup, rank: int, members: Sequence[int], number: int, call: Call, tensors: Sequence[Tensor]
    ) -> Any:
        if rank == 0 and tensors[0].dim() == 4:
            counts[call.op] += sum(tensor.numel() for tensor in tensors)
        return join(self, rank, tuple(members), number, call, tensors)

    monkeypatch.setattr(RankGroup, "join", counted)
    return counts


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), only([(3, 1, 1)], [(3, 1, 1), (5, 1, 2), (3, 2, 1), (1, 1, 0), (4, 4, 0)])
)
def test_ranks_send_the_rows_that_windows_reach(kernel: int, stride: int, padding: int, sent: Counter[str]) -> None:
    """kernel - stride rows: those of the image forward and again backward, and those of its gradient.

    Output o reads rows o s - p to o s - p + k - 1. So of a chunk of c rows, whose outputs are c / s, the first reads p
    rows before it and the last k - s - p behind it: k - s together, of batch, channels and width.
    """
    model = stretto.compile(Convolutions(kernel, stride, padding).double(), plan=_plan("sp=2", "dim 2 over sp"))
    model(torch.randn(BATCH, CHANNELS, HEIGHT, WIDTH, dtype=torch.float64)).backward()
    rows = max(kernel - stride, 0)
    assert sent["permute"] == 3 * rows * BATCH * CHANNELS * WIDTH
    assert not {"all_gather", "all_to_all", "reduce_scatter"} & sent.keys()


@pytest.mark.slow
def test_corners_come_with_the_second_dim(sent: Counter[str]) -> None:
    """Over a: two rows of a rank's columns. Over b: two columns of its rows with their halo."""
    plan = _plan("a=2, b=2", "dim 2 over a", "dim 3 over b")
    model = stretto.compile(Convolutions(3, 1, 1).double(), plan=plan)
    model(torch.randn(BATCH, CHANNELS, HEIGHT, WIDTH, dtype=torch.float64)).backward()
    assert sent["permute"] == 3 * BATCH * CHANNELS * (2 * WIDTH // 2 + 2 * (HEIGHT // 2 + 2))


@pytest.mark.parametrize(
    ("spaces", "height", "mesh", "cuts"),
    only(
        [],
        [
            (2, 8, "sp=2", ("dim 2 over sp",)),
            (2, 8, "sp=4", ("dim 3 over sp",)),
            (2, 12, "sp=4", ("dim 2 over sp",)),
            (2, 12, "a=2, b=2", ("dim 2 over a", "dim 3 over b")),
            (2, 16, "a=2, b=2", ("dim 2 over a, b",)),
            (2, 16, "a=2, b=2", ("dim 2 over b, a",)),
            (2, 8, "dp=2, a=2, b=2", ("batch over dp", "dim 2 over a", "dim 3 over b")),
            (1, 12, "sp=4", ("dim 2 over sp",)),
            (3, 8, "a=2, b=2", ("dim 2 over a", "dim 4 over b")),
        ],
    ),
)
def test_a_net_of_cut_images_trains_as_on_one_device(spaces: int, height: int, mesh: str, cuts: Sequence[str]) -> None:
    inputs = {"x": torch.zeros(4, 3, *(height, 8, 8)[:spaces])}
    compiled = compiled_model(Everything(spaces), inputs, _plan(mesh, *cuts), loss_only=True)
    torch.manual_seed(0)
    assert_report(check(compiled.program))
    assert prove(compiled.program).safe


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "lines"),
    [
        ("sp=2", ('shard inputs "images", "noise" dim 2 over sp',)),
        ("sp=4", ('shard inputs "images", "noise" dim 2 over sp',)),
        ("a=2, b=2", ('shard inputs "images", "noise" dim 2 over a', 'shard inputs "images", "noise" dim 3 over b')),
        ("sp=2", ('shard inputs "images", "noise" dim 2 over sp', "attention over sp { method ring }")),
    ],
)
def test_a_unet_of_cut_images_trains_as_on_one_device(mesh: str, lines: Sequence[str]) -> None:
    target = load_target(target_of("unet"), Request())
    about, text = target.input_ranges, "\n".join([f"mesh ({mesh})", *lines])
    program = compiled_model(target.model, target.inputs, text, about=about, loss_only=True).program
    torch.manual_seed(0)
    assert_report(check(program))
    assert prove(program).safe


def _checked(_rank: int, folder: Path) -> dict[str, Any]:
    return check_entry({"folder": str(folder), "steps": 2, "seed": 1})


@pytest.mark.slow
def test_processes_exchange_halos(tmp_path: Path) -> None:
    inputs = {"x": torch.zeros(2, 3, 12, 8)}
    compiled_model(Everything(), inputs, _plan("sp=2", "dim 2 over sp"), loss_only=True).program.save(tmp_path / "net")
    for report in values_of_ranks(_checked, 2, tmp_path / "net"):
        verdicts = Counter(row["verdict"] for row in report["rows"])
        assert verdicts["equal"] > 20 and not verdicts["differs"], verdicts


@pytest.mark.slow
def test_remarks_name_the_halo_and_the_extents_that_fit() -> None:
    inputs = {"x": torch.zeros(2, CHANNELS, 10, 6)}
    compiled = compiled_model(Convolutions(3, 2, 1), inputs, _plan("sp=2", "dim 2 over sp"), loss_only=True)
    said = [remark["message"] for remark in compiled.program.remarks]
    assert "1 x halo over sp: 0 before and 1 after a rank's 5 of dim 2, 384 B sent by each rank" in said
    assert any("10 elements of dim 2 over 2 ranks of sp do not fit a stride of 2" in text for text in said)
    assert any("a multiple of 4 would need less" in text for text in said)


@pytest.mark.slow
def test_a_cut_that_ranks_cannot_share_evenly_is_refused_with_what_fits() -> None:
    with pytest.raises(StrettoError, match=r'E0401.*input "x" has 9 elements in dim 2, which 2 ranks over sp'):
        compiled_model(Convolutions(3, 1, 1), {"x": torch.zeros(2, CHANNELS, 9, 6)}, _plan("sp=2", "dim 2 over sp"))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [5, 9])
def test_a_halo_longer_than_a_chunk_comes_in_several_hops_or_by_a_gather(kernel: int) -> None:
    """Four ranks have two rows each. Two rows on either side are a neighbour's; four are those of two, more than the
    six rows that all others have."""
    inputs, model = {"x": torch.zeros(2, CHANNELS, 8, 6)}, Convolutions(kernel, 1, kernel // 2)
    compiled = compiled_model(model, inputs, _plan("sp=4", "dim 2 over sp"), loss_only=True)
    moved = kinds(messages(compiled))
    assert ("all_gather" in moved) == (kernel == 9) and ("permute" in moved) == (kernel == 5)
    torch.manual_seed(0)
    assert_report(check(compiled.program))
