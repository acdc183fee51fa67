"""Mistakes in plans with a pipeline: each is refused at its place, with a way out."""

from __future__ import annotations

import pytest
import torch
from stretto.diagnostics import StrettoError
from stretto.frontend.captured import Mode
from stretto.runtime.prover import prove
from torch import Tensor, nn

from .staged_models import BATCH, Staged, assert_equal, captured, compiled, step_of

MINE = "\nschedule mine(stages p, microbatches m) {{\n  stage s {{\n    {}\n  }}\n}}\n"


def refused(items: str, more: str = "", pp: int = 2) -> StrettoError:
    """The error of a plan for the model with skips."""
    with pytest.raises(StrettoError) as caught:
        compiled(*step_of("skipping", Mode.TRAIN), f"mesh (pp={pp})\npipeline over pp {{ {items} }}{more}")
    return caught.value


def written(phases: str) -> StrettoError:
    """The error of a written schedule."""
    return refused("schedule mine  microbatches 2", MINE.format(phases))


@pytest.mark.parametrize(("items", "pp"), [("schedule gpipe", 64), ("schedule interleaved chunks 16", 4)])
def test_more_stages_than_cut_points(items: str, pp: int) -> None:
    error = refused(f"{items} microbatches 2", pp=pp)
    assert (error.code, str(error.span)) == ("E0451", "a.plan:2:1")
    assert "64 stages, but the forward has only" in error.message


def test_microbatches_that_do_not_divide_the_batch() -> None:
    error = refused("microbatches 5")
    assert (error.code, str(error.span)) == ("E0402", "a.plan:2:20")
    assert error.message == f'input "x" has {BATCH} rows, which 5 microbatches cannot share evenly'
    assert error.help == "pass 55 or 60 rows, or take 4 or 7 microbatches"


@pytest.mark.parametrize(
    ("split", "pp", "message", "note"),
    [
        ('"embed"', 2, "begins 0 stages behind the first", "no stage can begin where the first one does"),
        ('"down.1", "down.1"', 3, "begins 1 stage behind the first", 'stages would begin at "down.1"'),
        ('"down", "down.0"', 3, "begins 1 stage behind the first", 'stages would begin at "down.0"'),
    ],
)
def test_a_split_that_leaves_a_stage_empty(split: str, pp: int, message: str, note: str) -> None:
    error = refused(f"microbatches 2 split {split}", pp=pp)
    assert (error.code, str(error.span)) == ("E0453", "a.plan:2:35")
    assert message in error.message
    assert error.notes[0][0] == note


def test_a_schedule_that_leaves_a_stage_without_work() -> None:
    error = written("steady s * m { F B }")
    assert (error.code, str(error.span)) == ("E0724", "a.plan:5:20")
    assert "no rank runs F of microbatch 0 on stage 0" in error.message


def test_a_schedule_that_names_a_stage_that_is_not_there() -> None:
    error = written("drain { F[1] B[1] }")
    assert (error.code, str(error.span)) == ("E0134", "a.plan:5:13")
    assert error.message == "rank 0 holds chunks 0..0, not 1"


def test_a_schedule_that_names_a_microbatch_that_is_not_there() -> None:
    error = written("steady m + 1 { F B }")
    assert (error.code, str(error.span)) == ("E0723", "a.plan:5:20")
    assert error.message == "rank 0 runs F of microbatch 2 on stage 0, which does not exist"


def test_a_schedule_that_cannot_train() -> None:
    error = refused("schedule forward-only  microbatches 2")
    assert (error.code, str(error.span)) == ("E0724", "a.plan:2:20")


class Normed(nn.Module):
    """A loss that is the norm of all rows together: no sum over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 5) to a loss."""
        return (self.down(torch.relu(self.up(x))).square().sum() + 1).sqrt()


def test_a_loss_whose_gradient_needs_all_forwards_wants_a_schedule_that_runs_them_first() -> None:
    staged = Staged(Normed(), {"x": torch.randn(4, 5)})
    step = captured(staged)
    with pytest.raises(StrettoError) as caught:
        compiled(staged, step, "mesh (pp=2)\npipeline over pp { microbatches 2 }")
    error = caught.value
    assert (error.code, str(error.span)) == ("E0456", "a.plan:2:1")
    assert "1f1b runs BW of microbatch 0 on stage 1 before F of microbatch 1 on stage 1" in error.message
    assert error.notes[0][1] is not None and error.notes[0][1].file.endswith("test_pipeline_refusals.py")
    program = compiled(staged, step, "mesh (pp=2)\npipeline over pp { microbatches 2 schedule gpipe }")
    assert_equal(program)
    assert prove(program).safe


class Scaled(Normed):
    """Rows are divided by the mean of all of them, in the forward."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 5) to a loss."""
        rows = self.up(x)
        return self.down(rows / (rows.square().mean() + 1)).square().sum()


def test_a_forward_that_needs_a_sum_over_all_microbatches() -> None:
    staged = Staged(Scaled(), {"x": torch.randn(4, 5)})
    with pytest.raises(StrettoError) as caught:
        compiled(staged, captured(staged), "mesh (pp=2)\npipeline over pp { microbatches 2 schedule gpipe }")
    error = caught.value
    assert error.code == "E0403" and "needs a sum over all microbatches" in error.message
    assert error.span is not None and error.span.file.endswith("test_pipeline_refusals.py")
    assert error.help is not None and error.help.startswith("use what is computed of all rows in the loss alone")


class SquareOfSum(nn.Module):
    """One product alone, whose backward is work of no stage, and a loss that is not linear in its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).sum().square()


def test_a_number_of_all_microbatches_that_work_of_no_stage_needs() -> None:
    staged = Staged(SquareOfSum(), {"x": torch.rand(BATCH, 4, dtype=torch.float64)})
    with pytest.raises(StrettoError) as caught:
        compiled(staged, captured(staged), "mesh (pp=2)\npipeline over pp { microbatches 2 }")
    assert caught.value.code == "E0403" and "computed of all microbatches" in caught.value.message
