"""When a program gathers stored parameters, its buckets and its memory are compared with the text of its plan."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from stretto.driver.readings.plan_rows import peak_facts
from stretto.driver.readings.plan_text import PlanText
from stretto.driver.readings.recomputed import kept_against_plan
from stretto.driver.readings.stored_rows import stored_facts
from stretto.frontend.captured import Mode
from stretto.runtime.lanes.late_frees import late_frees
from stretto.runtime.program.program import Program
from torch import Tensor, nn

from ...end_to_end.checking import compiled_model
from ...faults.program_editing import keeping

AHEAD = "overlap { memory +1000% }"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x.square().mean()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.down(torch.tanh(self.up(x))))


class Blocks(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))


@cache
def _program(statements: str) -> Program:
    return _compiled(Net(), f"mesh (dp=2)\n{statements}")


def _compiled(model: nn.Module, plan: str) -> Program:
    return compiled_model(model, {"x": torch.randn(4, 8)}, plan, Mode.TRAIN, loss_only=True).program


def _wrong(compiled_with: str, text: str) -> list[str]:
    plan = PlanText.of(f"mesh (dp=2)\n{text}")
    facts = [*stored_facts(_program(compiled_with), plan), *peak_facts(_program(compiled_with), plan)]
    return list(dict.fromkeys(f"{name}: {found}" for name, found, expected in facts if found != expected))


@pytest.mark.slow
def test_gathers_of_another_distance_or_level_differ() -> None:
    once, again = f"zero 1 over dp\n{AHEAD}", f"zero 3 over dp\n{AHEAD}"
    kept, three = (f"zero 3 over dp {{ {item} }}\n{AHEAD}" for item in ("keep forward", "prefetch 3"))
    assert not [plan for plan in (once, again, kept, three) if _wrong(plan, plan)]
    assert _wrong(three, again) == ["zero prefetch: a gather 3 units ahead of its use"]
    assert _wrong(kept, again) == ["zero level: layers.3.weight, gathered in the forward, read by the backward"]
    assert _wrong(again, once) == _wrong(again, kept) == ["zero level: layers.1.weight gathered 2 times"]


def test_buckets_of_another_size_differ() -> None:
    large, small = (f"zero 3 over dp {{ bucket {size} }}\n{AHEAD}" for size in ("25MB", "600B"))
    assert not [plan for plan in (large, small) if _wrong(plan, plan)]
    assert "zero bucket: a bucket of 576 bytes" in _wrong(small, f"zero 3 over dp\n{AHEAD}")
    assert _wrong(large, small)[0].startswith("zero bucket: a bucket of 1")


def test_a_peak_above_the_plans_memory_differs() -> None:
    plan = "zero 3 over dp"
    [peak] = {found for _, found, _ in peak_facts(_program(plan), PlanText.of("overlap { memory 1B }"))}
    assert str(peak).startswith("a peak of ")
    least = str(peak).split()[3]
    for statement in ("overlap", "recompute auto"):
        assert _wrong(plan, f"{statement} {{ memory {least}B }}") == []
        assert _wrong(plan, f"{statement} {{ memory {int(least) - 1}B }}") == [f"{statement.split()[0]} memory: {peak}"]


def test_a_tensor_that_is_freed_late_or_never_is_named() -> None:
    program = _program("zero 3 over dp")
    main = program.functions["main"]
    assert late_frees(program) == []
    index = next(i for i, step in enumerate(main.code) if step.free and step.op.startswith("aten."))
    slot, code = main.code[index].free[0], list(main.code)
    code[index] = keeping(code[index], slot)
    never = replace(program, functions={**program.functions, "main": replace(main, code=tuple(code))})
    assert f"main keeps the tensor in slot {slot} until its end; instruction {index} " in late_frees(never)[0]
    code[-1] = replace(code[-1], free=(*code[-1].free, slot))
    late = replace(program, functions={**program.functions, "main": replace(main, code=tuple(code))})
    assert f"main keeps the tensor in slot {slot} until instruction {len(code) - 1} " in late_frees(late)[0]


@pytest.mark.slow
def test_collectives_that_do_not_run_again_differ() -> None:
    kept = 'mesh (tp=2)\nshard "*.up" columns over tp\nshard "*.down" rows over tp\nrecompute "layers.*"'
    again = f"{kept} {{ collectives again }}"
    for plan, found in ((again, 0), (kept, 2)):
        assert len([*kept_against_plan(_compiled(Blocks(), plan), PlanText.of(again))]) == found
