"""Checkpoints: saved under one plan and continued under another give the losses of a run without interruption."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import pytest
import stretto
import torch
import torch.distributed.checkpoint as dcp
from stretto.driver.checkpoints.checkpoints import EXTRA_FILE
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

from ...subsets import only, some
from .models import PLAN, adamw, seeded, train


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A checkpoint after three steps under (dp=2, tp=2), and the losses of the three after it."""
    path = tmp_path_factory.mktemp("checkpoints") / "step3"
    model = stretto.compile(seeded(), plan=PLAN.format(mesh="dp=2, tp=2"))
    optimizer = adamw(model)
    train(model, optimizer, range(3))
    stretto.save_checkpoint(path, model, optimizer, step=3, scheduler={"lr": [0.5]})
    return path, train(model, optimizer, range(3, 6))


@pytest.mark.parametrize("mesh", ["tp=4", "dp=2", None], ids=["tp=4", "dp=2", "plain"])
def test_a_run_continues_under_another_plan_and_under_plain_pytorch(
    saved: tuple[Path, list[float]], mesh: str | None
) -> None:
    path, expected = saved
    model = seeded(1)
    if mesh is not None:
        plan = PLAN.format(mesh=mesh) if "tp" in mesh else f"mesh ({mesh})"
        model = stretto.compile(model, plan=plan)
    optimizer = adamw(model)
    extra = stretto.load_checkpoint(path, model, optimizer)
    assert extra == {"step": 3, "scheduler": {"lr": [0.5]}}
    assert train(model, optimizer, range(3, 6)) == pytest.approx(expected, rel=1e-12)
    assert model.count.item() == 6


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_alone_reads_what_stretto_wrote_and_the_other_way_round(
    saved: tuple[Path, list[float]], tmp_path: Path
) -> None:
    path, expected = saved
    model = seeded(1)
    optimizer = adamw(model)
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(state, checkpoint_id=path, no_dist=True)
    optimizer.load_state_dict(optimizer_state_of(state, optimizer))
    model.load_state_dict(state["model"])
    assert train(model, optimizer, range(3, 6)) == pytest.approx(expected, rel=1e-12)

    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=tmp_path / "torchs", no_dist=True)
    again = stretto.compile(seeded(2), plan=PLAN.format(mesh="tp=2"))
    assert stretto.load_checkpoint(tmp_path / "torchs", again) == {}
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def optimizer_state_of(state: dict[str, dict[str, dict[str, object]]], optimizer: torch.optim.Optimizer) -> object:
    """torch's optimizer state by name as the optimizer itself numbers it."""
    own = optimizer.state_dict()
    for number, values in enumerate(state["optimizer"]["state"].values()):
        own["state"][number] = values
    return own


def test_random_numbers_continue_under_another_plan(tmp_path: Path) -> None:
    class Dropping(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.drop = seeded(), torch.nn.Dropout(0.5)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.drop(self.inner(tokens).expand(64)).sum()

    losses = []
    for mesh in ("dp=2", "dp=4"):
        model = stretto.compile(Dropping(), plan=f"mesh ({mesh})")
        optimizer = adamw(model)
        if mesh == "dp=4":
            stretto.load_checkpoint(tmp_path / "dropping", model, optimizer)
        else:
            train(model, optimizer, range(2))
            stretto.save_checkpoint(tmp_path / "dropping", model, optimizer)
        losses.append(train(model, optimizer, range(2, 4)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_saving_again_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    model = seeded()
    stretto.save_checkpoint(tmp_path / "last", model, step=1)
    stretto.save_checkpoint(tmp_path / "last", model, step=2)
    assert stretto.load_checkpoint(tmp_path / "last", model) == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_saving_an_optimizer_that_has_not_stepped_keeps_the_gradients(tmp_path: Path) -> None:
    model = seeded()
    optimizer = adamw(model)
    model(torch.zeros(1, 3, dtype=torch.long)).backward()
    before = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    stretto.save_checkpoint(tmp_path / "early", model, optimizer)
    after = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(torch.equal(after[name], before[name]) for name in before)  # type: ignore[arg-type]
    assert len(before) == len(after)


def test_an_optimizer_without_state_keeps_its_groups(tmp_path: Path) -> None:
    model = seeded()
    stretto.save_checkpoint(tmp_path / "sgd", model, torch.optim.SGD(model.parameters(), lr=0.25))
    optimizer = torch.optim.SGD(model.parameters(), lr=9.0)
    stretto.load_checkpoint(tmp_path / "sgd", model, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_saving_before_the_first_step_changes_no_loss(tmp_path: Path) -> None:
    losses = []
    for saves in (False, True):
        model = seeded()
        optimizer = adamw(model)
        if saves:
            stretto.save_checkpoint(tmp_path / "fresh", model, optimizer)
        losses.append(train(model, optimizer, range(3)))
    assert losses[0] == losses[1]


def test_a_new_optimizer_is_filled_where_there_are_gradients(saved: tuple[Path, list[float]]) -> None:
    path, expected = saved
    model = seeded(1)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer = adamw(model)
    stretto.load_checkpoint(path, model, optimizer)
    model.zero_grad()
    assert train(model, optimizer, range(3, 6)) == pytest.approx(expected, rel=1e-12)


def test_a_checkpoint_of_another_model_names_what_differs(saved: tuple[Path, list[float]]) -> None:
    other = seeded(hidden=16)
    del other.norm
    other.norm2 = torch.nn.LayerNorm(8).double()
    with pytest.raises(stretto.StrettoError, match="another model or optimizer") as caught:
        stretto.load_checkpoint(saved[0], other)
    assert caught.value.code == "E0611"
    text = str(caught.value)
    assert 'the checkpoint lacks "model.norm2.weight", "model.norm2.bias"' in text
    assert 'the model lacks "model.norm.weight", "model.norm.bias"' in text
    assert '"model.up.weight" has shape [12, 8] in the checkpoint and [16, 8] in the model' in text


def test_another_optimizer_is_distinguished_from_none(saved: tuple[Path, list[float]], tmp_path: Path) -> None:
    model = seeded()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(stretto.StrettoError, match="momentum_buffer") as caught:
        stretto.load_checkpoint(saved[0], model, sgd)
    assert caught.value.code == "E0611"
    stretto.save_checkpoint(tmp_path / "bare", model)
    with pytest.raises(stretto.StrettoError, match="no optimizer state"):
        stretto.load_checkpoint(tmp_path / "bare", model, sgd)


def test_an_incomplete_checkpoint_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "torn"
    model = seeded()
    stretto.save_checkpoint(path, model)
    [data] = path.glob("*.distcp")
    whole = data.read_bytes()
    before = model.up.weight.detach().clone()
    for damage, message in (
        (lambda: data.write_bytes(whole[: len(whole) // 2]), "of .* bytes"),
        (lambda: data.write_bytes(bytes(255 - byte for byte in whole)), "has no tensor"),
        (data.unlink, "is missing"),
        (lambda: (path / ".metadata").write_bytes(b"\x80\x04nonsense"), "cannot be read"),
        (lambda: (data.write_bytes(whole), (path / ".metadata").unlink()), "metadata is missing"),
    ):
        damage()
        with pytest.raises(stretto.StrettoError, match=message) as caught:
            stretto.load_checkpoint(path, model)
        assert caught.value.code == "E0610" and "weights_only" not in caught.value.message
    assert torch.equal(model.up.weight, before)


def test_a_folder_that_is_no_checkpoint_is_refused_and_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(stretto.StrettoError, match=re.escape(f"'{tmp_path / 'notes'}' is no checkpoint")) as caught:
        stretto.load_checkpoint(tmp_path / "notes", seeded())
    assert caught.value.code == "E0610"
    with pytest.raises(stretto.StrettoError, match="exists and is no checkpoint") as caught:
        stretto.save_checkpoint(tmp_path / "notes", seeded())
    assert caught.value.code == "E0508"


def test_a_damaged_stretto_json_is_an_incomplete_checkpoint(tmp_path: Path) -> None:
    stretto.save_checkpoint(tmp_path / "here", seeded())
    for text in ("{", json.dumps([1]), "[" * 100_000):
        (tmp_path / "here" / EXTRA_FILE).write_text(text)
        with pytest.raises(stretto.StrettoError, match=re.escape(EXTRA_FILE)):
            stretto.load_checkpoint(tmp_path / "here", seeded())


def test_a_value_that_json_cannot_hold_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(stretto.StrettoError, match='"rng" cannot be saved in a checkpoint') as caught:
        stretto.save_checkpoint(tmp_path / "never", seeded(), step=1, rng=torch.get_rng_state())
    assert caught.value.code == "E0615" and not list(tmp_path.iterdir())


def test_the_working_directory_itself_is_no_place_for_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(stretto.StrettoError, match="exists and is no checkpoint"):
        stretto.save_checkpoint(".", seeded())


def test_other_parameter_groups_are_refused(tmp_path: Path) -> None:
    model = seeded()
    optimizer = adamw(model)
    train(model, optimizer, range(1))
    stretto.save_checkpoint(tmp_path / "one", model, optimizer)
    groups = [{"params": [parameter], "lr": 0.01 * index} for index, parameter in enumerate(model.parameters())]
    groups[0]["extra"] = 3
    with pytest.raises(stretto.StrettoError, match="does not fit") as caught:
        stretto.load_checkpoint(tmp_path / "one", model, torch.optim.AdamW(groups))
    assert caught.value.code == "E0611"


KINDS = [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.Adafactor, torch.optim.RMSprop]


@pytest.mark.parametrize(
    ("kind", "mesh"),
    only([*zip(KINDS, ["dp=2", None, "dp=2", None], strict=True)], product(KINDS, ["dp=2", None])),
)
def test_a_run_saved_before_its_first_step_continues_as_one_without_interruption(
    kind: type[torch.optim.Optimizer], mesh: str | None, tmp_path: Path
) -> None:
    model = stretto.compile(seeded(), plan=PLAN.format(mesh="tp=2"))
    optimizer = kind(model.parameters(), lr=1e-2)
    stretto.save_checkpoint(tmp_path / "fresh", model, optimizer)
    assert kind is torch.optim.Adagrad or not optimizer.state
    expected = train(model, optimizer, range(3))

    other = seeded(1) if mesh is None else stretto.compile(seeded(1), plan=f"mesh ({mesh})")
    resumed = kind(other.parameters(), lr=9.0)
    stretto.load_checkpoint(tmp_path / "fresh", other, resumed)
    assert train(other, resumed, range(3)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mesh", some("tp=4", None))
def test_a_parameter_without_state_starts_without_state_and_a_frozen_one_keeps_its_state(
    mesh: str | None, tmp_path: Path
) -> None:
    def thaw(model: torch.nn.Module, part: str) -> None:
        for name in ("up", "down"):
            model.get_submodule(name).requires_grad_(name != part)

    model = stretto.compile(seeded(), plan=PLAN.format(mesh="dp=2, tp=2"))
    optimizer = adamw(model)
    thaw(model, "up")
    train(model, optimizer, range(2))
    thaw(model, "down")  # "up" has no state yet, "down" has one and is frozen
    stretto.save_checkpoint(tmp_path / "half", model, optimizer)
    assert len(optimizer.state) == 5
    expected = train(model, optimizer, range(2, 4))
    thaw(model, "")
    expected += train(model, optimizer, range(4, 6))

    other = seeded(1) if mesh is None else stretto.compile(seeded(1), plan=PLAN.format(mesh=mesh))
    resumed = adamw(other)
    train(other, resumed, range(7, 9))  # a state that is replaced, and for "up" dropped
    thaw(other, "down")
    stretto.load_checkpoint(tmp_path / "half", other, resumed)
    assert len(resumed.state) == 5
    losses = train(other, resumed, range(2, 4))
    thaw(other, "")
    assert [*losses, *train(other, resumed, range(4, 6))] == pytest.approx(expected, rel=1e-12)


def test_a_checkpoint_is_loaded_while_gradients_wait(saved: tuple[Path, list[float]]) -> None:
    path, expected = saved
    model = stretto.compile(seeded(1), plan="mesh (dp=2)")
    optimizer = adamw(model)
    with model.no_sync():
        model(torch.zeros(2, 3, dtype=torch.long)).backward()
    stretto.load_checkpoint(path, model, optimizer)
    assert train(model, optimizer, range(3, 6)) == pytest.approx(expected, rel=1e-12)


def test_groups_of_other_parameters_are_refused_before_anything_is_changed(tmp_path: Path) -> None:
    model = seeded()
    first, *rest = model.parameters()
    optimizer = torch.optim.AdamW([{"params": [first], "lr": 0.5}, {"params": rest}])
    train(model, optimizer, range(1))
    stretto.save_checkpoint(tmp_path / "two", model, optimizer)
    other = seeded(1)
    before = other.up.weight.detach().clone()
    first, *rest = other.parameters()
    swapped = torch.optim.AdamW([{"params": rest, "lr": 9.0}, {"params": [first]}])
    stretto.load_checkpoint(tmp_path / "two", other, swapped)
    assert [group["lr"] for group in swapped.param_groups] == [1e-3, 0.5]

    other = seeded(1)
    *rest, last = other.parameters()
    with pytest.raises(stretto.StrettoError, match=r'no parameter group of "embed') as caught:
        stretto.load_checkpoint(tmp_path / "two", other, torch.optim.AdamW([{"params": rest}, {"params": [last]}]))
    assert caught.value.code == "E0611" and torch.equal(other.up.weight, before)
    with pytest.raises(stretto.StrettoError, match="are not the model's") as caught:
        stretto.save_checkpoint(tmp_path / "never", other, adamw(model))
    assert caught.value.code == "E0611" and not (tmp_path / "never").exists()
