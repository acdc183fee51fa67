"""A check knows in which mode each module of a target must be, and sees a loader that leaves it in another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stretto.driver.check.second_load import load_again, refuse_other_modes, rows_of_loading, rows_of_states
from stretto.driver.check.verify_target import TargetJob, verify_target
from stretto.frontend.captured import Mode
from stretto.frontend.targets.load_target import load_target, load_targets
from stretto.frontend.targets.target import Request, Target, TargetError
from torch import nn

from ...runtime.tiny_programs import data_parallel

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


class Twofold(nn.Linear):
    def double(self, x):
        return 2 * self(x)

    def triple(self, x):
        return 3 * self(x)


def entries():
    model = Twofold(4, 4)
    inputs = {"x": torch.randn(2, 4)}
    return model, {"double": (model.double, inputs), "triple": (model.triple, inputs)}


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


HF = Target(nn.Linear(4, 4), {"ids": torch.zeros(2, 6, dtype=torch.int64)}, True, {"kind": "hf"})


@pytest.mark.parametrize(
    ("target", "request_", "rows"),
    [
        (HF, Request(batch=2, seq=6), []),
        (HF, Request(batch=2), []),
        (HF, Request(batch=6, seq=2), ["--batch", "--seq"]),
        (replace(HF, source={"kind": "file"}), Request(dtype="float32"), []),
        (replace(HF, source={"kind": "file"}), Request(dtype="bfloat16"), ["--dtype"]),
    ],
)
def test_what_options_ask_for_is_compared_with_what_was_loaded(
    target: Target, request_: Request, rows: list[str]
) -> None:
    assert [row.name for row in rows_of_loading(target, request_, None)] == rows


def test_the_callable_and_the_inputs_of_an_entry_are_those_that_its_function_returns(file: str) -> None:
    targets = load_targets(f"{file}:entries")
    again = load_again(f"{file}:entries.double", Request())
    assert rows_of_loading(targets["double"], Request(), again) == []
    [row] = rows_of_loading(targets["triple"], Request(), again)
    assert row.note == "the target names Twofold.double, and Twofold.triple was loaded"
    other = replace(targets["double"], inputs={"x": torch.zeros(3, 4)})
    [row] = rows_of_loading(other, Request(), again)
    assert row.name == "inputs" and "of shape [2, 4], and it was loaded of shape [3, 4]" in row.note


def test_a_buffer_that_was_asked_for_as_a_state_is_one() -> None:
    program = data_parallel()
    [buffer] = program.of_kind("buffer")
    for pattern, named in ((buffer.name, True), ("*", True), ("other", False)):
        source = {"request": {"states": [pattern]}}
        found = rows_of_states(replace(program, manifest=replace(program.manifest, source=source)))
        assert [row.name for row in found] == [buffer.name] * named
