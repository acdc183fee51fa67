"""Objects among the arguments that hold tensors: what they share a program by, and what of them may change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import stretto
import torch
from stretto.driver.model.compiled_module import compiled_module, program_of
from stretto.frontend.captured import CaptureError
from torch import Tensor, nn

PLAN = 'mesh (tp=2)\nshard buffers "held.*.rows", "rows" dim 1 over tp'


@dataclass
class Rows:
    rows: Tensor
    length: Tensor
    scale: float = 1.0
    note: Any = None


@dataclass(slots=True)
class Slotted:
    """An object without a `__dict__`, in which one tensor stands twice."""

    parts: list[Rows]
    first: Tensor

    @staticmethod
    def empty() -> Slotted:
        parts = [Rows(torch.zeros(6, 4, dtype=torch.float64), torch.tensor(0)) for _ in range(2)]
        return Slotted(parts, parts[0].rows)


class Writer(nn.Module):
    """Writes rows into what it is given; the body of a test may do more."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.ones(1, 4, dtype=torch.float64))

    def forward(self, x: Tensor, held: Slotted) -> tuple[Tensor, Slotted]:
        for part in held.parts:
            part.rows.index_copy_(0, part.length.view(1), part.scale * x * self.rows)
            part.length.add_(1)
        return held.first + held.parts[1].rows, held


def row(step: int) -> Tensor:
    return torch.full((1, 4), 1.0 + step, dtype=torch.float64)


def test_an_object_is_written_returned_and_shares_a_program_with_others_of_its_structure() -> None:
    eager, compiled = Writer(), stretto.compile(Writer(), plan=PLAN, states=["held.*"])
    for _ in range(2):
        expected, given = Slotted.empty(), Slotted.empty()
        with torch.no_grad():
            for step in range(3):
                result, returned = compiled(row(step), given)
                assert returned is given
                torch.testing.assert_close(result, eager(row(step), expected)[0])
        torch.testing.assert_close(given.parts[1].rows, expected.parts[1].rows)
        assert given.parts[0].length == 3
    programs = compiled_module(compiled)._programs._keys
    assert len(programs) == 1
    names = [state.name for state in program_of(compiled).of_kind("state")]
    assert sorted(names) == [f"held.parts.{i}.{name}" for i in range(2) for name in ("length", "rows")]
    given.parts[1].scale = 2.0
    with torch.no_grad():
        result, _ = compiled(row(3), given)
    assert len(programs) == 2 and result[3, 0] == 4.0 + 8.0


def test_a_buffer_of_the_model_in_an_object_is_the_models() -> None:
    compiled = stretto.compile(Writer(), plan=PLAN, states=["held.*"])
    given = Slotted.empty()
    given.parts[1].note = compiled.rows
    with torch.no_grad():
        compiled(row(0), given)
    assert "rows" in [buffer.name for buffer in program_of(compiled).of_kind("buffer")]
    assert not any("note" in state.name for state in program_of(compiled).of_kind("state"))


class Setter(Writer):
    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor, held: Slotted) -> Tensor:
        self.change(held, x)
        return x + held.first


CHANGES = {
    "held.parts.1.scale": lambda held, x: setattr(held.parts[1], "scale", 2.0),
    "held.parts.2": lambda held, x: held.parts.append(Rows(x, x)),
    "held.parts.0.note.'b'": lambda held, x: held.parts[0].note.add("b"),
    "held.first": lambda held, x: setattr(held, "first", x),
    "held.parts.0.more": lambda held, x: setattr(held.parts[0], "more", x),
}


@pytest.mark.parametrize("path", CHANGES)
def test_a_forward_that_sets_an_attribute_is_refused_by_its_path_and_undone(path: str) -> None:
    given = Slotted.empty()
    given.parts[0].note = {"a"}
    before = repr(given)
    compiled = stretto.compile(Setter(CHANGES[path]), plan="mesh (tp=1)")
    with pytest.raises(CaptureError) as caught, torch.no_grad():
        compiled(row(0), given)
    assert caught.value.code == "E0216" and f'"{path}"' in caught.value.message
    assert repr(given) == before and given.first is given.parts[0].rows and not hasattr(given.parts[0], "more")


def test_an_object_with_a_module_and_one_without_tensors_are_refused() -> None:
    compiled = stretto.compile(Writer(), plan="mesh (tp=1)")
    given = Slotted.empty()
    given.parts[0].note = nn.Linear(2, 2)
    for held, named in ((given, '"held.parts.0.note" is a module'), (object(), "holds no tensor")):
        with pytest.raises(CaptureError, match=named) as caught:
            compiled(row(0), held)
        assert caught.value.code == "E0211"


def test_a_tensor_of_an_object_under_the_name_of_a_buffer_is_refused() -> None:
    model = Writer()
    model.add_module("held", nn.Module())
    model.held.register_buffer("first", torch.zeros(1))
    with pytest.raises(CaptureError, match=r'"held\.first"') as caught:
        stretto.compile(model, plan="mesh (tp=1)")(row(0), Slotted([], torch.zeros(2)))
    assert caught.value.code == "E0212"
