"""Weights saved and loaded as safetensors; models on the meta device are filled from them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import stretto
import torch
from safetensors.torch import load_file, load_model, save_file

from .models import PLAN, Small, adamw, seeded, train


def test_weights_go_out_once_each_and_come_in_again(tmp_path: Path) -> None:
    model = stretto.compile(seeded(), plan=PLAN.format(mesh="tp=2"))
    file = tmp_path / "sub" / "weights.safetensors"
    stretto.save_weights(model, file)
    assert sorted(load_file(file)) == [
        "count", "down.bias", "down.weight", "embed.weight", "norm.bias", "norm.weight", "up.bias", "up.weight",
    ]  # fmt: skip
    for read in (lambda other: stretto.load_weights(other, file), lambda other: load_model(other, file)):
        other = seeded(1)
        read(other)
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))
    assert [path.name for path in file.parent.iterdir()] == ["weights.safetensors"]


def test_a_model_without_memory_is_filled_when_it_is_compiled(tmp_path: Path) -> None:
    source = seeded()
    stretto.save_weights(source, tmp_path / "w.safetensors")
    with stretto.meta_parameters():
        empty = Small().double()
    assert all(parameter.is_meta for parameter in empty.parameters()) and not empty.scale.is_meta
    model = stretto.compile(empty, plan=PLAN.format(mesh="tp=2"), weights=tmp_path / "w.safetensors")
    assert model.head.weight is model.embed.weight
    assert train(model, adamw(model), range(2)) == pytest.approx(train(source, adamw(source), range(2)), rel=1e-12)


def test_a_class_is_filled_when_an_object_of_it_is_built(tmp_path: Path) -> None:
    source = seeded()
    stretto.save_weights(source, tmp_path / "w.safetensors")

    @stretto.compile(plan=PLAN.format(mesh="tp=2"), weights=tmp_path)
    class Filled(Small):
        pass

    assert torch.equal(Filled().double().up.weight, source.up.weight.float().double())


def test_a_folder_of_files_is_one_set_of_weights(tmp_path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in seeded().state_dict().items() if name != "embed.weight"}
    names = sorted(state)  # a tied tensor may come under its second name
    for part, chosen in enumerate((names[:4], names[4:])):
        save_file({name: state[name] for name in chosen}, tmp_path / f"model-{part}.safetensors")
    model = seeded(1)
    stretto.load_weights(model, tmp_path)
    assert torch.equal(model.embed.weight, state["head.weight"])


def test_names_and_shapes_that_do_not_fit_are_named_and_nothing_is_changed(tmp_path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in seeded().state_dict().items() if name != "head.weight"}
    renamed = {("ups" + name[2:] if name.startswith("up.") else name): tensor for name, tensor in state.items()}
    save_file(renamed, tmp_path / "renamed.safetensors")
    model = seeded(1)
    before = model.embed.weight.detach().clone()
    with pytest.raises(stretto.StrettoError, match=r'the file lacks "up\.weight", "up\.bias"') as caught:
        stretto.load_weights(model, tmp_path / "renamed.safetensors")
    assert caught.value.code == "E0613" and '"ups.weight" is nearest to "up.weight"' in str(caught.value)
    save_file(state, tmp_path / "wide.safetensors")
    with pytest.raises(stretto.StrettoError, match=r'"up.weight" of shape \[12, 8\]') as caught:
        stretto.load_weights(seeded(hidden=16), tmp_path / "wide.safetensors")
    assert caught.value.code == "E0613"
    assert torch.equal(model.embed.weight, before)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    model = seeded()
    torn = tmp_path / "torn.safetensors"
    stretto.save_weights(model, torn)
    torn.write_bytes(torn.read_bytes()[:200])
    (tmp_path / "empty").mkdir()
    for path, message in ((torn, "damaged"), (tmp_path / "empty", "holds no weights"), (tmp_path / "no", "no file")):
        with pytest.raises(stretto.StrettoError, match=message) as caught:
            stretto.load_weights(model, path)
        assert caught.value.code == "E0612"
    with pytest.raises(stretto.StrettoError, match="cannot be written") as caught:
        stretto.save_weights(model, torn / "below")
    assert caught.value.code == "E0508"


def test_computed_buffers_on_the_meta_device_are_refused(tmp_path: Path) -> None:
    stretto.save_weights(seeded(), tmp_path / "w.safetensors")
    with torch.device("meta"):
        lost = Small()
    with pytest.raises(stretto.StrettoError, match='"scale" is on the meta device') as caught:
        stretto.compile(lost, plan=PLAN.format(mesh="tp=2"), weights=tmp_path / "w.safetensors")
    assert caught.value.code == "E0614"


def test_a_device_or_a_pipe_is_no_weights_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path, tmp_path / "pipe.safetensors", Path("/dev/zero")):
        with pytest.raises(stretto.StrettoError, match="it is a device or a pipe") as caught:
            stretto.load_weights(torch.nn.Linear(2, 2), path)
        assert caught.value.code == "E0612"
