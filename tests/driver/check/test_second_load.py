"""A check knows in which mode each module of a target must be, and sees a loader that leaves it in another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from stretto.driver.check.second_load import load_again, refuse_other_modes
from stretto.driver.check.verify_target import TargetJob, verify_target
from stretto.frontend.captured import Mode
from stretto.frontend.targets.load_target import load_target
from stretto.frontend.targets.target import Request, TargetError
from torch import nn

SOURCE = """
import torch
from torch import nn


class Sampled(nn.Dropout):
    def train(self, mode=True):
        return super().train(True)


class Frozen(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


def plain():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    model[2].eval()
    return model, {"input": torch.randn(4, 4)}


def sampled():
    return nn.Sequential(nn.Linear(4, 4), Sampled(0.5)), {"input": torch.randn(4, 4)}


def frozen():
    return Frozen(nn.Linear(4, 4), nn.Dropout(0.5)).train(), {"input": torch.randn(4, 4)}


def once():
    torch.library.define("made_once::op", "(Tensor x) -> Tensor")
    return plain()
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "model.py").write_text(SOURCE)
    (tmp_path / "dp.plan").write_text("mesh (dp=2)\n")
    return f"{tmp_path}/model.py"


def judged(target: str, mode: Mode, spoil: Callable[[nn.Module], object] = lambda model: None) -> None:
    """Load a target, spoil it as a loader might, and look at its modes."""
    request = Request(mode=mode)
    loaded = load_target(target, request)
    spoil(loaded.model)
    refuse_other_modes(target, loaded, request, load_again(target, request))


@pytest.mark.parametrize("target", ["plain", "sampled", "frozen"])
@pytest.mark.parametrize("mode", Mode)
def test_a_target_in_the_mode_that_its_classes_and_function_give_it_passes(file: str, target: str, mode: Mode) -> None:
    judged(f"{file}:{target}", mode)


SPOILED: dict[str, tuple[str, Mode, Callable[[nn.Module], object], str]] = {
    "the whole model stays in train mode": ("plain", Mode.INFER, lambda m: m.train(), '"Sequential".*train mode'),
    "one module stays in train mode": ("plain", Mode.INFER, lambda m: m[1].train(), '"1".*train mode.*eval mode'),  # type: ignore[index]
    "the whole model is in eval mode": ("plain", Mode.TRAIN, lambda m: m.eval(), '"Sequential".*eval mode'),
    "one module is in eval mode": ("plain", Mode.TRAIN, lambda m: m[1].eval(), '"1".*eval mode.*train mode'),  # type: ignore[index]
    "what its function froze is trained": ("plain", Mode.TRAIN, lambda m: m.train(), '"2".*train mode'),
    "what its class freezes is trained": ("frozen", Mode.INFER, lambda m: m[1].train(), '"1".*train mode'),  # type: ignore[index]
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_module_in_another_mode_is_named(what: str, file: str) -> None:
    target, mode, spoil, message = SPOILED[what]
    with pytest.raises(TargetError, match=f"(?s)E0667.*{message}"):
        judged(f"{file}:{target}", mode, spoil)


def test_a_target_that_loads_only_once_is_judged_by_the_mode_alone(file: str) -> None:
    assert load_again(f"{file}:once", Request()) is not None
    assert load_again(f"{file}:once", Request()) is None


def test_verify_names_the_module(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "eval", lambda self: self)
    with pytest.raises(TargetError, match="E0667"):
        verify_target(TargetJob(f"{file}:plain", str(Path(file).with_name("dp.plan")), "infer"))
