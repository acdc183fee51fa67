"""A compiled class is the class it was; a compiled model is the model it was."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
from typing import Any

import pytest
import stretto
import torch
from torch import Tensor, nn

from ...rank_threads import begun_and_left, rank_threads
from .. import models
from ..models import DP, GPT, TP, Deeper, PlainGPT, Small, batch, twins


def test_the_decorated_name_stays_a_class() -> None:
    assert inspect.isclass(GPT) and GPT.__name__ == "GPT" and GPT.__doc__ == "Compiled; the plan lies beside this file."
    assert str(inspect.signature(GPT)) == "(layers: 'int' = 1, name: 'str' = '') -> 'None'"
    model = GPT(name="mine")
    assert type(model) is GPT and isinstance(model, PlainGPT) and model.name == "mine"
    assert repr(model).startswith("GPT(\n  (embed): Embedding(50, 16)")


def test_names_and_parameters_are_those_of_the_plain_class() -> None:
    model, plain = GPT(), PlainGPT()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())
    model.load_state_dict(plain.state_dict())


def test_a_decorated_class_computes_what_its_forward_says() -> None:
    torch.manual_seed(0)
    model = GPT()
    output = model(*batch())
    assert output.item() == pytest.approx(model.forward(*batch()).item(), rel=1e-6)
    assert stretto.program_of(model).mesh.ranks == 4


def test_subclasses_are_compiled_with_their_base() -> None:
    model = Deeper()
    x = torch.randn(4, 4)
    assert model.eval()(x).item() == pytest.approx(model.forward(x).item(), rel=1e-6)
    assert "more.weight" in {parameter.name for parameter in stretto.program_of(model).of_kind("parameter")}


def test_init_subclass_of_the_user_still_runs() -> None:
    seen: list[tuple[str, Any]] = []

    class Base(nn.Module):
        def __init_subclass__(cls, tag: str = "", **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            seen.append((cls.__name__, tag))

    @stretto.compile(plan=DP)
    class Middle(Base, tag="middle"):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            seen.append((cls.__name__, "own"))

    class Leaf(Middle, tag="leaf"):
        pass

    assert seen == [("Middle", "middle"), ("Leaf", "leaf"), ("Leaf", "own")]
    assert issubclass(Leaf, Middle)


def test_a_compiled_model_inside_another_is_part_of_it() -> None:
    @stretto.compile(plan=DP)
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Small()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.inner(x) + 1
            return result

    model = Outer().eval()
    x = torch.randn(4, 4)
    assert model(x).item() == pytest.approx(model.inner.forward(x).item() + 1, rel=1e-6)
    with pytest.raises(stretto.StrettoError, match=r"E0602.*not called yet"):
        stretto.program_of(model.inner)


@pytest.mark.parametrize("form", ["class", "model"])
def test_models_are_copied_and_pickled_without_their_programs(form: str) -> None:
    model: nn.Module = Small().eval() if form == "class" else stretto.compile(nn.Linear(4, 4), plan=DP)
    x = torch.randn(4, 4)
    before = pickle.loads(pickle.dumps(model))
    output = model(x)
    for other in (before, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)):
        assert isinstance(other, Small if form == "class" else nn.Linear)
        with pytest.raises(stretto.StrettoError, match="E0602"):
            stretto.program_of(other)
        assert torch.equal(other(x), output)
        assert stretto.program_of(other).hash == stretto.program_of(model).hash


def test_classes_are_pickled_by_name_and_models_with_their_state() -> None:
    assert pickle.loads(pickle.dumps(GPT)) is GPT is models.GPT
    file = io.BytesIO()
    torch.save(stretto.compile(nn.Linear(4, 4), plan=DP), file)
    file.seek(0)
    assert isinstance(torch.load(file, weights_only=False), nn.Linear)


def test_both_faces_of_one_model_share_everything() -> None:
    model, _ = twins()
    compiled = stretto.compile(model, plan=TP)
    assert compiled is not model and type(compiled).__name__ == "PlainGPT" and isinstance(compiled, PlainGPT)
    assert all(a is b for a, b in zip(compiled.parameters(), model.parameters(), strict=True))
    compiled.eval()
    assert not model.training
    model.note = "seen"
    assert compiled.note == "seen"
    assert repr(compiled) == repr(model)


def test_no_thread_is_left_when_a_model_is_gone() -> None:
    gc.collect()
    before = rank_threads()
    model = Small()
    model(torch.randn(4, 4)).backward()
    assert len(rank_threads() - before) == 2
    del model
    assert not begun_and_left(before)


@pytest.mark.parametrize("target", [3, int, "gpt", nn.Module.forward])
def test_what_is_no_model_is_refused(target: Any) -> None:
    with pytest.raises(stretto.StrettoError, match="E0601"):
        stretto.compile(target, plan=DP)


def test_a_program_of_a_plain_model_is_refused() -> None:
    with pytest.raises(stretto.StrettoError, match=r"E0602.*never compiled"):
        stretto.program_of(nn.Linear(2, 2))
