"""Vocabularies that the pipeline axis shards: every rank of the pipeline runs its part of their work."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from stretto.diagnostics import StrettoError
from stretto.driver.compile.compile_program import compile_capture, compile_program
from stretto.driver.compile.request import Compiled, CompileRequest, Observer, Options
from stretto.dsl import Plan
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import Capture, Mode
from stretto.frontend.to_ir import Floats
from stretto.ir.equivalence import compare
from stretto.ir.module import Module, callee, operations
from stretto.ir.pipelined_module import entries, microbatch_of
from stretto.runtime.checks.program_check import check
from stretto.runtime.processes.launch import run_processes
from stretto.runtime.prover import prove
from torch import Tensor, nn

from ...subsets import some

WORDS, WIDTH = 21, 8
ALL = '"embed", "head"'


class Layer(nn.Module):
    """A residual layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Model(nn.Module):
    """A language model: an embedding, layers and a head, which may be tied."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(6, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(4))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=not tied)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """(batch, 6) tokens to logits, or to the loss of targets."""
        x = self.embed(tokens) + self.places.weight
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.norm(x))
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@cache
def step_of(tied: bool, trains: bool) -> tuple[Model, Capture]:
    """The model and one call of it, captured."""
    torch.manual_seed(0)
    tokens = torch.randint(0, WORDS, (8, 6))
    inputs = {"tokens": tokens}
    if trains:
        inputs["targets"] = torch.where(tokens % 5 == 0, -100, tokens)
    model = Model(tied)
    return model, capture(model, (), inputs, mode=Mode.TRAIN if trains else Mode.INFER, loss_only=trains)


def compiled(
    items: str,
    mesh: str = "pp=2",
    shard: str = '"embed", "head" vocab over pp',
    tied: bool = False,
    trains: bool = True,
) -> tuple[Compiled, dict[str, str]]:
    """The model by a plan; also the module after each pass."""
    model, step = step_of(tied, trains)
    plan = Plan.parse(f"mesh ({mesh})\nshard {shard}\npipeline over pp {{ microbatches 4  {items} }}\n", "a.plan")
    options = Options(Mode.TRAIN if trains else Mode.INFER, loss_only=trains, floats=Floats.FLOAT64)
    texts: dict[str, str] = {}

    def after(name: str, module: Module) -> None:
        texts[name] = module.text()

    return compile_capture(step, model, plan, options, Observer(module=after)), texts


def agrees(items: str, **options: str | bool) -> None:
    """Whether ranks as threads give what one device does."""
    program, _ = compiled(items, **options)  # type: ignore[arg-type]
    report = check(program.program)
    assert report.passed and max(row.error for row in report.rows) < 1e-9
    assert prove(program.program).safe


def tasks(texts: dict[str, str], coordinate: int) -> list[str]:
    """The calls of an entry, each with its microbatch."""
    module = Module.parse(texts["order-tasks"])
    return [f"{callee(op)}:{microbatch_of(op)}" for op in operations(entries(module)[coordinate]) if callee(op)]


@pytest.mark.parametrize("barriers", some(2, 1))
def test_every_pass_keeps_loss_and_gradients_of_a_shared_head(barriers: int) -> None:
    program, texts = compiled(f"barriers {barriers}", shard='"head" vocab over pp')
    captured = Module.parse(texts["captured"])
    for name in ("use-local-statistics", "cut-stages", "split-segments", "order-tasks", "start-collectives"):
        comparison = compare(captured, Module.parse(texts[name]))
        assert comparison.is_equal and comparison.error < 1e-9, name
    report = check(program.program)
    assert report.passed and max(row.error for row in report.rows) < 1e-9


def test_all_coordinates_run_shared_tasks_of_every_microbatch_in_one_order() -> None:
    _, texts = compiled("schedule 1f1b")
    orders = [tasks(texts, coordinate) for coordinate in (0, 1)]
    for name in ("embedding", "output", "output_gradient", "embedding_gradient"):
        shared = [[task for task in order if task.startswith(f"{name}:")] for order in orders]
        assert shared[0] == shared[1] == [f"{name}:{coordinate}" for coordinate in range(4)]
    assert orders[1].index("forward_1:1") < orders[1].index("backward_1:0") > orders[1].index("output:0")


def test_barriers_stand_between_tasks_so_that_other_work_hides_them() -> None:
    program, texts = compiled("schedule 1f1b  barriers 2")
    module = Module.parse(texts["start-collectives"])
    inside = [name for name, f in module.functions().items() for op in operations(f) if "pp" in str(op.attributes)]
    assert not [name for name in inside if name.startswith(("embedding", "output_gradient"))]
    last = [op.operation.name if callee(op) is None else str(callee(op)) for op in operations(entries(module)[1])]
    gradient = last.index("output_gradient")
    assert last[gradient + 1] == "comm.all_reduce_start"
    assert {"output", "forward_1"} & set(last[gradient : last.index("backward_1")])
    hidden = [
        remark["message"]
        for remark in program.program.remarks
        if remark["pass"] == "start-collectives" and remark["kind"] == "applied"
    ]
    assert any("all_reduce over pp runs beside other work" in str(message) for message in hidden)


@pytest.mark.slow
def test_in_16_bits_barriers_stand_between_tasks_too() -> None:
    items = "precision { params fp32 compute bf16 reduce fp32 }\nshard " + ALL + " vocab over pp"
    plan = Plan.parse(f"mesh (pp=2)\n{items}\npipeline over pp {{ microbatches 2 }}\n", "a.plan")
    tokens, texts = torch.zeros(4, 6, dtype=torch.int64), dict[str, str]()

    def after(name: str, module: Module) -> None:
        texts[name] = module.text()

    request = CompileRequest.of(Model(False), (), {"tokens": tokens, "targets": tokens}, plan)
    compile_program(request, Observer(module=after))
    module = Module.parse(texts["order-tasks"])
    assert "comm.all_reduce" not in [op.operation.name for op in operations(module.functions()["output"])]


@pytest.mark.slow
def test_ranks_that_are_processes_share_a_vocabulary(tmp_path: Path) -> None:
    program, _ = compiled("schedule zb-v  barriers 2", shard='"embed" vocab over pp', tied=True)
    program.program.save(tmp_path / "program")
    arguments = {"folder": str(tmp_path / "program"), "steps": 2, "seed": 1}
    reports = run_processes("stretto.runtime.processes.jobs:check_entry", arguments, 2)
    assert [report["passed"] for report in reports] == [True, True]  # type: ignore[index, call-overload]


def test_with_one_barrier_only_per_row_work_waits_for_the_all_reduced_statistics() -> None:
    _, texts = compiled("schedule 1f1b", shard='"head" vocab over pp')
    module = Module.parse(texts["order-tasks"])
    names = {name: [op.operation.name for op in operations(f)] for name, f in module.functions().items()}
    assert sum(op.endswith("mm_default") for op in names["output"]) == 2
    assert "aten.mm_default" in names["output_gradient"]
    assert not any(op.startswith("comm.all_reduce") for name in ("output", "output_gradient") for op in names[name])
    assert "aten.mm_default" not in names["main_0"]


@pytest.mark.parametrize("schedule", some("zb-h1", "interleaved", "dualpipe-v"))
def test_any_schedule_keeps_values_with_a_tied_vocabulary(schedule: str) -> None:
    agrees(f"schedule {schedule}", shard='"embed" vocab over pp', tied=True)


@pytest.mark.slow
def test_a_vocabulary_over_stages_and_ranks_of_a_layer_keeps_values() -> None:
    agrees("schedule 1f1b  barriers 2", mesh="pp=2, tp=2", shard=f"{ALL} vocab over pp, tp")


def test_a_rank_without_any_row_of_the_vocabulary_keeps_values() -> None:
    agrees("schedule 1f1b", mesh="pp=4, tp=2", shard='"head" vocab over pp, tp')


@pytest.mark.slow
def test_an_embedding_alone_and_more_ranks_than_its_rows_need() -> None:
    agrees("schedule 1f1b", mesh="pp=4", shard='"embed" vocab over pp')


def test_logits_are_gathered_for_all_in_inference() -> None:
    agrees("schedule 1f1b", trains=False)


def test_barriers_without_a_vocabulary_get_a_remark() -> None:
    program, _ = compiled("barriers 2", mesh="pp=2, tp=2", shard='"head" vocab over tp')
    assert '"barriers" says nothing here: no vocabulary is sharded over pp' in [
        remark["message"] for remark in program.program.remarks
    ]


def test_no_forward_runs_ahead_for_which_the_plan_has_no_memory() -> None:
    _, texts = compiled("schedule 1f1b  memory 2", shard='"head" vocab over pp')
    first = [task for task in tasks(texts, 0) if task.startswith(("forward", "backward"))]
    assert first[:3] == ["forward_0:0", "forward_0:1", "backward_0:0"]


def test_a_vocabulary_between_stages_is_refused() -> None:
    class Twice(Model):
        def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
            x = self.embed(tokens)
            x = self.layers[0](x)
            x = self.layers[1](x + torch.softmax(self.head(x), -1) @ self.embed.weight)
            return (x * x).mean()

    plan = Plan.parse('mesh (pp=2)\nshard "head" vocab over pp\npipeline over pp { microbatches 2 }\n', "a.plan")
    with pytest.raises(StrettoError, match="stands between that of stages") as caught:
        compile_program(CompileRequest.of(Twice(False), (), {"tokens": torch.zeros(4, 6, dtype=torch.int64)}, plan))
    assert caught.value.code == "E0454"
