"""`per microbatch`: the loss is the mean of the losses of separate microbatches, also where rows interact."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import stretto
import torch
from stretto.diagnostics import StrettoError
from stretto.driver.check.pass_check import Breakage
from stretto.driver.check.verify_passes import PassesJob, show_passes, verify_passes
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CAPTURED, NO_OBSERVER, CompileRequest, Observer, Options
from stretto.driver.debug.bisect import bisect
from stretto.driver.ir_files.module_source import Source
from stretto.dsl import Plan
from stretto.frontend.captured import Mode
from stretto.frontend.to_ir import Floats
from stretto.ir.module import Module
from stretto.passes.default_pipeline import PipelineConfig, default_pipeline
from stretto.passes.pipeline_text import print_pipeline
from stretto.passes.pipelining.average_microbatches import AverageMicrobatches, _Average
from stretto.passes.rewriting import Emitter
from stretto.runtime.checks.program_check import check
from stretto.runtime.checks.report import Verdict
from stretto.runtime.program.program import Program
from torch import Tensor, nn
from torch.nn import functional as F

from ..subsets import only, some

ROWS, WIDTH, CLASSES, MICROBATCHES = 16, 6, 5, 4
SCHEDULES = ["1f1b", "zb-h1"]
MESHES = ["", ", dp=2"]
DEFAULT = [("contrastive", "zb-h1", ", dp=2"), ("rmse", "1f1b", ""), ("routed", "1f1b", ", dp=2")]
"""Of models, schedules and meshes: those of the default run."""
Loss = Callable[[Tensor, Tensor], Any]


def plan(schedule: str = "1f1b", mesh: str = "", microbatches: int = MICROBATCHES, more: str = "") -> str:
    text = f"schedule {schedule}  microbatches {microbatches}  per microbatch"
    return f"mesh (pp=2{mesh})\n{more}pipeline over pp {{ {text} }}\n"


class Net(nn.Module):
    """Layers, a head, and a loss that may join rows."""

    def __init__(
        self, loss: Loss, drop: float = 0.0, norm: Callable[[], nn.Module] = nn.Identity, layers: int = 3
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, WIDTH), norm(), nn.Dropout(drop))
            for _ in range(layers)
        )
        self.head = nn.Linear(WIDTH, CLASSES)
        self.loss = loss

    def forward(self, x: Tensor, y: Tensor) -> Any:
        """(rows, width) and (rows, classes) to what the loss makes of them."""
        for layer in self.layers:
            x = x + layer(x)
        return self.loss(self.head(x), y)


class Routed(nn.Module):
    """Experts of rows, weighted, with a loss for their balance."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.router = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The error and the balance, a number."""
        x = self.up(x).relu()
        shares = self.router(x).softmax(-1)
        output = sum(shares[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts))
        most = F.one_hot(shares.argmax(-1), 3).to(x.dtype).mean(0)
        return F.mse_loss(output, y) + (most * shares.mean(0)).sum()


def contrastive(a: Tensor, b: Tensor) -> Tensor:
    scores = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).t() * 3
    same = torch.arange(len(a))
    return (F.cross_entropy(scores, same) + F.cross_entropy(scores.t(), same)) / 2


def rmse(a: Tensor, b: Tensor) -> Tensor:
    return F.mse_loss(a, b).sqrt()


def with_outputs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return rmse(a, b), a, a.detach().std()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "contrastive": lambda: Net(contrastive),
    "rmse": lambda: Net(rmse),
    "routed": Routed,
}


def batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(ROWS, WIDTH, generator=random, dtype=dtype),
        "y": torch.randn(ROWS, CLASSES, generator=random, dtype=dtype),
    }


def program(model: nn.Module, text: str, mode: Mode = Mode.TRAIN, watch: Observer = NO_OBSERVER) -> Program:
    options, plan = Options(mode=mode, floats=Floats.FLOAT64), Plan.parse(text, "a.plan")
    return compile_program(CompileRequest.of(model, (), batch(dtype=torch.float32), plan, options), watch).program


def _texts(found: dict[str, str]) -> Observer:
    """Puts the module as captured, and after each pass, into `found`."""
    return Observer(module=lambda name, module: found.update({name: module.text()}))


def checked(compiled: Program, most: float = 1e-12) -> None:
    report = check(compiled)
    assert report.passed, "\n".join(str(row) for row in report.rows if row.verdict is Verdict.DIFFERS)
    assert report.tolerance == 1e-9
    assert max(row.error for row in report.rows) < most


def refused(model: nn.Module, text: str, mode: Mode = Mode.TRAIN) -> StrettoError:
    with pytest.raises(StrettoError) as caught:
        program(model, text, mode)
    return caught.value


def parts(rows: Tensor, ranks: int, count: int = MICROBATCHES) -> list[Tensor]:
    """Each microbatch's rows: its part of those of every data rank."""
    by_rank = rows.unflatten(0, (ranks, count, -1))
    return [by_rank[:, m].flatten(0, 1) for m in range(count)]


@pytest.mark.parametrize(("model", "schedule", "mesh"), only(DEFAULT, product(MODELS, SCHEDULES, MESHES)))
def test_gradients_are_those_of_a_loop_that_accumulates(model: str, schedule: str, mesh: str) -> None:
    plain = MODELS[model]().double()
    trained = copy.deepcopy(plain)
    compiled = stretto.compile(trained, plan=plan(schedule, mesh))
    inputs = batch()
    loss = compiled(**inputs)
    loss.backward()
    ranks, total = 2 if mesh else 1, torch.zeros((), dtype=torch.float64)
    for x, y in zip(parts(inputs["x"], ranks), parts(inputs["y"], ranks), strict=True):
        part_loss = plain(x, y) / MICROBATCHES
        part_loss.backward()
        total += part_loss.detach()
    assert abs(loss.item() - total.item()) < 1e-12
    whole = plain(**inputs).item()
    assert abs(loss.item() - whole) > 1e-4, "the whole batch has another loss"
    for (name, one), other in zip(plain.named_parameters(), trained.parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad is not None, name
        assert (one.grad - other.grad).abs().max() < 1e-12, name


@pytest.mark.parametrize(("mesh", "schedule"), only([("", "1f1b"), (", dp=2", "zb-h1")], product(MESHES, SCHEDULES)))
def test_the_check_computes_microbatches_alone_on_one_device(mesh: str, schedule: str) -> None:
    checked(program(Net(with_outputs, drop=0.3), plan(schedule, mesh)))


@pytest.mark.parametrize("more", some('shard "layers.*.0" columns over tp\n', 'shard "*.weight" dim 0 over dp\n'))
def test_tensors_are_sharded_beside_separate_microbatches(more: str) -> None:
    checked(program(Net(contrastive), plan("zb-h1", ", tp=2" if "tp" in more else ", dp=2", more=more)))


@pytest.mark.parametrize("reduce", ["bf16", "fp32"])
def test_gradients_are_reduced_over_ranks_once_in_the_dtype_that_the_plan_says(reduce: str) -> None:
    text = f"precision {{ params fp32  compute bf16  reduce {reduce} }}\n"
    inputs = batch(dtype=torch.float32)
    request = CompileRequest.of(Net(rmse), (), inputs, Plan.parse(plan("zb-h1", ", dp=2", more=text)))
    program = compile_program(request).program
    once = [
        instruction.op
        for name in program.functions
        if name.startswith("main_")
        for instruction in program.functions[name].code
        if instruction.op == "comm.all_reduce_start" and instruction.kwargs["axes"] == ["dp"]
    ]
    assert len(once) == len(program.results_of_kind("gradient"))
    assert check(program).passed


@pytest.mark.parametrize("microbatches", only([1, 8], [1, 2, 8]))
@pytest.mark.slow
def test_any_number_of_microbatches_may_be_separate(microbatches: int) -> None:
    checked(program(Net(rmse, drop=0.5), plan("zb-v", microbatches=microbatches)))


@pytest.mark.parametrize("mesh", MESHES)
def test_results_for_inference_are_those_of_each_microbatch(mesh: str) -> None:
    checked(
        program(Net(lambda a, y: (a - a.mean(0), a.mean()), drop=0.5).eval(), plan("forward-only", mesh), Mode.INFER)
    )


def test_masks_differ_between_microbatches_and_between_steps() -> None:
    model = Net(lambda a, y: a, drop=0.5)
    compiled = stretto.compile(model, plan=plan("forward-only"))
    same = {"x": torch.ones(ROWS, WIDTH), "y": torch.ones(ROWS, CLASSES)}
    with torch.no_grad():
        first, second = compiled(**same), compiled(**same)
    masked = [*first.split(ROWS // MICROBATCHES), *second.split(ROWS // MICROBATCHES)]
    assert all(not torch.equal(a, b) for i, a in enumerate(masked) for b in masked[:i])


def test_tied_weights_and_inputs_have_the_gradients_of_the_mean() -> None:
    model = Net(contrastive).double()
    model.layers[2][0].weight = model.layers[0][0].weight
    plain = copy.deepcopy(model)
    inputs, own = batch(), batch()
    inputs["x"].requires_grad_()
    own["x"].requires_grad_()
    stretto.compile(model, plan=plan("zb-h1", ", dp=2"))(**inputs).backward()
    for x, y in zip(parts(own["x"], 2), parts(own["y"], 2), strict=True):
        (plain(x, y) / MICROBATCHES).backward()
    assert inputs["x"].grad is not None
    assert own["x"].grad is not None
    assert (inputs["x"].grad - own["x"].grad).abs().max() < 1e-12
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert (one.grad - other.grad).abs().max() < 1e-12


def test_a_batch_norm_is_of_each_microbatch_where_it_keeps_no_statistics() -> None:
    norms = Net(rmse, norm=lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False))
    checked(program(norms, plan()), most=1e-9)  # AdamW amplifies the rounding of biases that the norms take away


def test_a_batch_norm_that_keeps_statistics_is_refused_by_its_buffer() -> None:
    error = refused(Net(rmse, norm=lambda: nn.BatchNorm1d(WIDTH)), plan())
    assert error.code == "E0404"
    assert 'a step changes buffer "layers.0.3.running_mean"' in error.message
    assert "track_running_stats=False" in error.help
    assert str(error.span) == "a.plan:2:51"


def test_an_output_that_is_no_mean_and_no_rows_is_refused_by_its_name() -> None:
    error = refused(Net(lambda a, y: {"loss": rmse(a, y), "best": a.detach().argmax()}), plan())
    assert error.code == "E0404"
    assert 'output "best" of shape [] is no floating number' in error.message
    assert "return its mean" in error.help


def test_microbatches_are_averaged_once_and_on_the_ranks_of_the_plan() -> None:
    texts: dict[str, str] = {}
    program(Net(rmse), plan(), watch=_texts(texts))
    for text, mesh in ((texts["average-microbatches"], ""), (texts["lower-idioms"], ", dp=2")):
        with pytest.raises(StrettoError, match='"average-microbatches" does not take') as caught:
            AverageMicrobatches(Plan.parse(plan(mesh=mesh))).run(Module.parse(text))
        assert caught.value.code == "E0455"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": torch.zeros(6, WIDTH), "y": torch.zeros(6, CLASSES)}, 'input "x" has 6 rows, which 4 microbatches'),
        ({"x": torch.zeros(8, WIDTH), "y": torch.zeros(2, CLASSES)}, 'input "y" has 2 rows, as many as a microbatch'),
        ({"x": torch.tensor(1.0), "y": torch.tensor(1.0)}, "no input with a batch"),
    ],
)
def test_inputs_that_have_no_microbatches_are_refused_in_the_plan(inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(StrettoError, match=message) as caught:
        compile_program(CompileRequest.of(Net(rmse), (), inputs, Plan.parse(plan(), "a.plan")))
    assert caught.value.code == "E0402"
    assert caught.value.span is not None


def test_sizes_that_vary_are_compiled_each_for_itself() -> None:
    model = Net(rmse).double()
    compiled = stretto.compile(model, plan=plan(), dynamic={"x": {0: "rows"}, "y": {0: "rows"}})
    for rows in (8, 16):
        inputs = {name: tensor[:rows] for name, tensor in batch().items()}
        expected = sum(model(x, y) for x, y in zip(parts(inputs["x"], 1), parts(inputs["y"], 1), strict=True)) / 4
        assert abs(compiled(**inputs).item() - expected.item()) < 1e-12
    assert "computed alone" in str(stretto.program_of(compiled).remarks)


def test_a_program_records_that_its_microbatches_are_separate() -> None:
    compiled = program(Net(rmse), plan())
    assert compiled.pipeline is not None
    assert compiled.pipeline.separate_microbatches
    assert type(compiled.pipeline).from_json(compiled.pipeline.to_json()) == compiled.pipeline
    assert "separate_microbatches" not in type(compiled.pipeline)("pp", ("a",), 1).to_json()


@pytest.mark.slow
def test_verify_compares_the_mean_over_microbatches_with_the_module_for_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, texts = tmp_path / "a.plan", dict[str, str]()
    file.write_text(plan("zb-h1"))
    program(Net(rmse, drop=0.5, layers=2), plan("zb-h1"), watch=_texts(texts))
    text = print_pipeline(list(default_pipeline(PipelineConfig(Plan.load(file), follow_precision=False))))
    report = verify_passes(PassesJob(Source(texts[CAPTURED], "step.mlir", text)))
    assert report.passed
    assert all(verdict.equal and not verdict.changes for verdict in report.verdicts)
    rows = report.to_json()["passes"]
    assert {"pass": "average-microbatches", "verdict": "equal"}.items() <= next(
        row for row in rows if row["pass"] == "average-microbatches"
    ).items()
    show_passes(report)
    shown = capsys.readouterr().out
    assert (
        "average-microbatches was compared with the mean of what the module before it computes of each microbatch"
        in shown
    )
    assert "left the values as they were" in shown


_term = _Average._microbatch_term


def _divided_again(self: _Average, emitter: Emitter, value: Any) -> Any:
    return _term(self, emitter, emitter.like("aten.div.Scalar", value, self.pipeline.microbatches))


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "the tangent is not shared": lambda patch: patch.setattr(_Average, "_share", lambda self, emitter, value: value),
    "every microbatch draws the same": lambda patch: patch.setattr(
        _Average, "_own_rng_state", lambda self, emitter, state: state
    ),
    "gradients are divided twice": lambda patch: patch.setattr(_Average, "_microbatch_term", _divided_again),
}


@pytest.fixture(scope="module")
def before_averaging() -> str:
    """The module before its microbatches are averaged, where averaging is right."""
    modules = list[tuple[str, str]]()
    watch = Observer(module=lambda name, module: modules.append((name, module.text())))
    program(Net(rmse, drop=0.5, layers=1), plan(), watch=watch)
    names = [name for name, _ in modules]
    before = modules[names.index("average-microbatches") - 1][1]
    assert bisect(Module.parse(before), [AverageMicrobatches(Plan.parse(plan()))]).broken is None
    return before


@pytest.mark.parametrize("fault", some(*FAULTS))
def test_a_fault_in_averaging_microbatches_differs(
    fault: str, before_averaging: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    averaging = [AverageMicrobatches(Plan.parse(plan()))]
    FAULTS[fault](monkeypatch)
    found = bisect(Module.parse(before_averaging), averaging)
    assert found.breakage is Breakage.VALUES and found.op is not None
