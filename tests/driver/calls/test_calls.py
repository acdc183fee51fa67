"""`compile --check` makes the calls of a training loop through `stretto.compile`, so that faults of that path show."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.utils._pytree as pytree
from stretto.diagnostics import StrettoError
from stretto.driver.calls import sides
from stretto.driver.calls.comparison import compare_calls
from stretto.driver.calls.compile_check import checked_record, show_checked
from stretto.driver.calls.constants import varied_constants
from stretto.driver.calls.loop import Loop
from stretto.driver.compile.compile_target import CompileJob, compile_target
from stretto.driver.model import compiled_module, variants
from stretto.driver.model.rng_state import ModelRngState
from stretto.driver.state import state_tensors
from stretto.dsl.plan import Plan
from stretto.frontend.capture import capture, traced
from stretto.frontend.capture.call import BoundCall
from stretto.frontend.captured import Mode, OutputTree, TensorLeaf
from stretto.frontend.targets.load_target import load_target
from stretto.frontend.targets.target import Request
from stretto.passes.partition import vocabulary
from stretto.passes.sharding import check_batch
from stretto.runtime.checks.report import CALLS, CheckRow, Verdict
from stretto.runtime.philox import RngState
from stretto.runtime.rank import translate
from stretto.runtime.rank.unreduced_gradients import UnreducedGradients
from stretto.runtime.threads.communicator import RankGroup
from stretto.runtime.threads.session import RankThreads

from ...faults.planted.source_faults_alone import first_loss_alone, no_buffers_without_grad, no_step_without_grad
from ...faults.planted.source_faults_calls import any_sum_of_a_sum, last_gradient_alone
from ...faults.planted.source_faults_training import seed_of_the_first_call
from ...faults.planted.source_faults_unseen import first_gradient_alone, of_the_last_forward
from ...subsets import only

SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x, sharp=False):
        first = self.a(x) + self.b(x)
        second = first + self.c(x)
        hidden = F.dropout(self.norm(second) * (4.0 if sharp else 1.0), 0.25, self.training)
        masked = hidden.masked_fill(x > 1, float("-inf"))
        return torch.tanh(hidden).square().mean(), first, second, masked


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x, y):
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return (x - y).square().mean()


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(8, 6), nn.Linear(6, 8, bias=False)
        with torch.no_grad():
            self.head.weight.mul_(1000)

    def forward(self, tokens):
        return F.cross_entropy(self.head(self.embed(tokens)).flatten(0, 1), tokens.flatten())


class Refused(Layers):
    def forward(self, x, y):
        return super().forward(x, y), {"logits": x.flip(0)}


class Table(Layers):
    def forward(self, x, table):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return (x @ table.t()).logsumexp(-1).mean()


class Kinds(Layers):
    def forward(self, x, scale=1.5, how="sum", limit=None, options=(True, {"power": 2})):
        hidden = self.layers[0](x) * scale if options[0] else self.layers[1](x)
        if limit is not None:
            hidden = hidden.clamp(max=limit)
        hidden = hidden ** options[1]["power"]
        return {"loss": hidden.sum() if how == "sum" else hidden.amax(), "scale": scale, "how": [how, None]}


def kinds():
    return Kinds(), {"x": torch.randn(8, 6), "scale": 1.5}


class Pair(Layers):
    def forward(self, x, y):
        return {"loss": super().forward(x, y), "size": self.layers[0](x).square().sum(), "x": self.layers[1](x)}


def pair():
    return Pair(), layers()[1]


def table():
    return Table(), {"x": torch.randn(8, 6), "table": torch.randn(8, 6)}


def everything():
    return Everything(), {"x": torch.randn(8, 6)}


def layers():
    return Layers(), {"x": torch.randn(8, 6), "y": torch.randn(8, 6)}


def differentiated():
    x, y = (torch.randn(8, 6, requires_grad=True) for _ in range(2))
    return Layers(), {"x": x, "y": y}


def words():
    return Words(), {"tokens": torch.arange(32).reshape(8, 4) % 8}


class Branches(Layers):
    def forward(self, x, y):
        loss = super().forward(x, y)
        return loss if self.training or loss > 0 else -loss


def branches():
    return Branches(), layers()[1]


def refused():
    return Refused(), layers()[1]
"""
DATA = "mesh (dp=2)"
CONTEXT = "mesh (dp=2, cp=2)\nshard inputs batch over dp, cp"
VOCAB = 'mesh (tp=2)\nshard "embed", "head" vocab over tp'
PIPELINE = "mesh (pp=2)\npipeline over pp { schedule 1f1b microbatches 2 }"
ALONE = "mesh (pp=2, dp=2)\npipeline over pp { schedule 1f1b microbatches 2 per microbatch }"


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "model.py").write_text(SOURCE)
    return f"{tmp_path}/model.py"


def rows(model: str, target: str, plan: str, mode: Mode = Mode.TRAIN, dtype: str | None = None) -> list[CheckRow]:
    return list(compare_calls(f"{model}:{target}", Request(mode, dtype=dtype), Plan.parse(plan)).rows)


def differing(found: list[CheckRow]) -> set[str]:
    """The calls in which something differs."""
    return {row.name.partition(" (")[2].removesuffix(")") for row in found if row.verdict is Verdict.DIFFERS}


PRECISION = "precision { params fp32  compute bf16  reduce fp32 }"


@pytest.mark.parametrize(
    ("target", "plan", "mode", "dtype"),
    [
        ("everything", DATA, Mode.TRAIN, None),
        ("everything", DATA, Mode.INFER, None),
        pytest.param("everything", DATA, Mode.TRAIN, "float64", marks=pytest.mark.slow),
        pytest.param("layers", DATA + "\n" + PRECISION, Mode.TRAIN, None, marks=pytest.mark.slow),
        ("layers", ALONE, Mode.TRAIN, None),
        pytest.param("differentiated", DATA, Mode.TRAIN, None, marks=pytest.mark.slow),
        pytest.param("pair", DATA, Mode.TRAIN, None, marks=pytest.mark.slow),
        pytest.param("words", VOCAB, Mode.TRAIN, None, marks=pytest.mark.slow),
    ],
)
def test_the_calls_of_a_right_model_are_equal(
    model: str, target: str, plan: str, mode: Mode, dtype: str | None
) -> None:
    found = rows(model, target, plan, mode, dtype)
    assert differing(found) == set()
    calls = {row.name.partition(" (")[2].removesuffix(")") for row in found if row.verdict is Verdict.EQUAL}
    trained = {"no_sync", "no_sync, zero_grad", "eval"} if mode is Mode.TRAIN else set()
    trained |= {"eval, inference_mode"} if mode is Mode.TRAIN else set()
    trained |= {"eval, with gradients"} if mode is Mode.TRAIN and plan != ALONE else set()
    trained |= {"inputs that require gradients"} if mode is Mode.TRAIN and target in ("everything", "layers") else set()
    scaled = {"step(scale=3)"} if mode is Mode.TRAIN and target != "pair" else set()
    scaled |= (
        {"zero_grad(set_to_none=False)"} if mode is Mode.TRAIN and target == "everything" else set()
    )  # its buffers
    constants = {"sharp=True", "sharp=False"} if target == "everything" else set()
    constants |= {"norm.eval()" if mode is Mode.TRAIN else "norm.train()"} if target == "everything" else set()
    seeds = {
        "another seed",
        "the same seed again",
        "set_random_state",
        "no_grad",
        "no_grad, second call",
        "no_grad, another seed",
    }
    seeds = seeds if target == "everything" and mode is Mode.TRAIN else set()
    assert calls == {
        "own weights",
        "second call",
        "another model between",
        "saved weights",
        *trained,
        *scaled,
        *constants,
        *seeds,
    }


def no_new_numbers(state: Any, session: Any) -> None:
    session.rng_state = state.state
    state.state = RngState(state.state.seed, state.state.step)


def without_constants(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(*args: Any, **kwargs: Any) -> Any:
        key = right(*args, **kwargs)
        return replace(key, structure=(key.structure[0], ""))

    return wrong


def without_modes(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: replace(right(*args, **kwargs), training=())


def with_the_roots_mode(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(*args: Any, **kwargs: Any) -> Any:
        key = right(*args, **kwargs)
        return replace(key, training=key.training[:1])

    return wrong


def without_floats(call: Any) -> tuple[str, str]:
    return str(call.spec), repr([None if isinstance(leaf, float) else leaf for leaf in call.leaves])


def tensors_alone(tree: Any, tensors: list[Any], _arguments: Any = ()) -> Any:
    leaves = [tensors[leaf.index] if isinstance(leaf, TensorLeaf) else None for leaf in tree.leaves]
    return pytree.tree_unflatten(leaves, tree.spec)


def for_training_alone(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda held, call, plan: right(held, call, plan) if held.training[0] else Mode.INFER


def without_differentiated_inputs(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: replace(right(*args, **kwargs), differentiable=())


def parameters_alone(model: Any) -> Any:
    return iter(model.named_parameters())


def seen_is_the_states(state: ModelRngState, given: RngState) -> None:
    state._state, state._seen = given, given.seed


def minimum_for_maximum(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, value, op: right(self, value, "min" if op == "max" else op)


def parts_of_the_first_model(right: Callable[..., Any]) -> Callable[..., Any]:
    parts: dict[tuple[str, int], Any] = {}

    def wrong(session: Any, argument: Any, tensor: Any, rank: int) -> Any:
        own = right(session, argument, tensor, rank)
        return parts.setdefault((argument.name, rank), own) if argument.kind == "parameter" else own

    return wrong


def without_its_step(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda model: RngState(right(model).seed)


def inner_ends_the_outer(module: Any) -> Any:
    @contextmanager
    def no_sync() -> Any:
        module._keeps_unreduced = True
        yield
        module._keeps_unreduced = False

    return no_sync()


FAULTS: dict[str, tuple[object, str, Callable[[Any], Any], str, str, set[str]]] = {
    "every call draws the same": (
        ModelRngState, "advance", lambda _: no_new_numbers, "everything", DATA, {"second call"},
    ),
    "buffers are not written back": (
        variants, "run", lambda right: lambda *args, **kwargs: (right(*args, **kwargs)[0], {}), "everything", DATA,
        {"own weights"},
    ),
    "a sum that is an output is written to": (
        translate, "in_place_adds", lambda _: any_sum_of_a_sum, "everything", DATA, {"own weights"},
    ),
    "constants do not tell calls apart": (
        compiled_module, "key_of", without_constants, "everything", DATA, {"sharp=False"},
    ),
    "of gradients that wait the last one stays": (
        UnreducedGradients, "add", lambda _: last_gradient_alone, "layers", CONTEXT, {"no_sync"},
    ),
    "of two inputs the first gets a gradient": (
        capture, "replace", first_gradient_alone, "differentiated", DATA, {"own weights", "second call", "no_sync"},
    ),
    "a backward reads what the last forward saved": (
        RankThreads, "forward", of_the_last_forward, "layers", DATA, {"no_sync"},
    ),
    "another seed is not seen": (
        ModelRngState, "state", seed_of_the_first_call, "everything", DATA, {"another seed"},
    ),
    "zero_grad keeps gradients that wait": (
        compiled_module.CompiledModule, "discard", lambda _: lambda module: None, "layers", DATA,
        {"no_sync, zero_grad"},
    ),
    "floats do not tell calls apart": (
        BoundCall, "structure", lambda _: property(without_floats), "kinds", DATA, {"scale=0.75"},
    ),
    "plain values of the result are lost": (
        OutputTree, "rebuild", lambda _: tensors_alone, "kinds", DATA, {"structure"},
    ),
    "a state that is set does not outlive torch's other seed": (
        ModelRngState, "state", lambda right: property(right.fget, seen_is_the_states), "everything", DATA,
        {"set_random_state"},
    ),
    "inputs that require a gradient later get none": (
        compiled_module, "key_of", without_differentiated_inputs, "layers", DATA, {"inputs that require gradients"},
    ),
    "in eval mode nothing has a gradient": (
        compiled_module, "mode_of", for_training_alone, "layers", DATA, {"differentiated"},
    ),
    "saved weights have no buffers": (
        state_tensors, "_named", lambda _: parameters_alone, "everything", DATA, {"saved weights"},
    ),
    "every call without gradients draws the same": (
        ModelRngState, "advance", no_step_without_grad, "everything", DATA,
        {"no_grad", "no_grad, second call", "no_grad, another seed"},
    ),
    "calls without gradients write no buffers": (
        variants, "run", no_buffers_without_grad, "everything", DATA, {"no_grad", "no_grad, second call"},
    ),
    "a call in eval mode runs the program of train mode": (
        compiled_module, "key_of", without_modes, "everything", DATA, {"eval"},
    ),
    "the mode of submodules does not tell calls apart": (
        compiled_module, "key_of", with_the_roots_mode, "everything", DATA, {"norm.eval()"},
    ),
    "parts of parameters are kept by name, for all models": (
        RankThreads, "_local", parts_of_the_first_model, "layers", DATA, {"another model between"},
    ),
    "the state of random numbers is saved without its step": (
        sides, "random_state", without_its_step, "everything", DATA, {"set_random_state"},
    ),
    "an inner no_sync ends the outer one": (
        compiled_module.CompiledModule, "no_sync", lambda _: inner_ends_the_outer, "layers", DATA, {"no_sync"},
    ),
    "of two losses the first may be differentiated": (
        traced, "_differentiable", first_loss_alone, "pair", DATA, {"differentiated"},
    ),
    "the statistics of large logits overflow": (
        vocabulary.Vocabulary, "all_reduced", minimum_for_maximum, "words", VOCAB, {"own weights"},
    ),
}  # fmt: skip
"""By meaning: a function, how it is replaced, what is compiled under which plan, and calls in which it shows."""


SLOW = (
    "calls without gradients write no buffers", "a call in eval mode runs the program of train mode",
    "every call draws the same", "inputs that require a gradient later get none",
    "the state of random numbers is saved without its step", "saved weights have no buffers",
    "an inner no_sync ends the outer one", "every call without gradients draws the same",
    "a state that is set does not outlive torch's other seed", "a sum that is an output is written to",
    "constants do not tell calls apart",
    "buffers are not written back", "another seed is not seen", "of two inputs the first gets a gradient",
)  # fmt: skip


FIRST_CALLS = ("own weights", "second call", "sharp=True", "eval, with gradients")
"""Those that some of the others come after."""


def make_these_calls(monkeypatch: pytest.MonkeyPatch, calls: Collection[str]) -> None:
    """Of the loop's calls, as each may compile a program of its own."""
    right = Loop._phases
    monkeypatch.setattr(
        Loop, "_phases", lambda *given: ((phase, call) for phase, call in right(*given) if phase in calls)
    )


@pytest.mark.parametrize("fault", only([fault for fault in FAULTS if fault not in SLOW], FAULTS))
def test_a_fault_shows_in_a_call(fault: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, make, target, plan, calls = FAULTS[fault]
    make_these_calls(monkeypatch, {*FIRST_CALLS, *calls})
    monkeypatch.setattr(owner, name, make(inspect.getattr_static(owner, name)))
    assert calls <= differing(rows(model, target, plan))


def test_each_kind_of_constant_gets_another_value_with_which_eager_mode_returns_something_else(model: str) -> None:
    loaded = load_target(f"{model}:kinds", Request(Mode.TRAIN))
    calls = [each.text for each in varied_constants(loaded.model, loaded.inputs)]
    assert calls == [
        "options[0]=False", "options[0]=True", "options[1]['power']=3", "options[1]['power']=2", "scale=0.75",
        "scale=1.5", "how='how'", "how='sum'", "limit=0.5", "limit=None",
    ]  # fmt: skip


def test_an_index_that_eager_mode_refuses_is_refused(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_these_calls(monkeypatch, {"own weights"})

    def taken_for_valid(vocabulary_: Any, indices: Any) -> Any:
        return vocabulary_.own(indices)

    assert not [row for row in rows(model, "words", VOCAB) if row.differs]
    monkeypatch.setattr(vocabulary.Vocabulary, "own_checked", taken_for_valid)
    above, below = [row for row in rows(model, "words", VOCAB) if row.differs]
    assert (above.name, below.name) == ("of tokens with the index 8", "of tokens with the index -1")
    assert all("eager mode refuses this index" in row.note for row in (above, below))


def replaced_buffers(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(variant: Any, held: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = right(variant, held, *args, **kwargs)
        for buffer in held.buffers.values():
            buffer.data = buffer.clone()
        return outputs

    return wrong


def without(**fields: Any) -> Callable[..., Any]:
    return lambda right: lambda *args, **kwargs: replace(right(*args, **kwargs), **fields)


ROWS: dict[str, tuple[object, str, Callable[..., Any], str, str, str]] = {
    "buffers are replaced": (
        variants.Variant, "call", replaced_buffers, "everything", DATA, "norm.running_mean (memory)",
    ),
    "hooks do not tell calls apart": (
        compiled_module, "key_of", without(hooks=()), "layers", DATA, "with a forward hook that is added",
    ),
    "autocast does not tell calls apart": (
        compiled_module, "key_of", without(autocast=None), "layers", DATA, "with autocast around a call",
    ),
    "frozen parameters do not tell calls apart": (
        compiled_module, "key_of", without(trainable=()), "layers", DATA, "with a parameter that is frozen",
    ),
    "the last index stands for -1": (
        vocabulary.Vocabulary, "own_checked", lambda right: lambda self, indices: right(
            self, self.emitter.like("aten.abs.default", indices)), "words", VOCAB, "of tokens with the index -1",
    ),
}  # fmt: skip
"""By meaning: a function, how it is replaced, what is compiled under which plan, and the row that shows it."""


@pytest.mark.parametrize("fault", only(["hooks do not tell calls apart"], ROWS))
def test_a_fault_is_a_row_of_its_own(fault: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, make, target, plan, row = ROWS[fault]
    make_these_calls(monkeypatch, {"own weights"})
    assert row not in {each.name for each in rows(model, target, plan) if each.differs}
    monkeypatch.setattr(owner, name, make(inspect.getattr_static(owner, name)))
    assert row in {each.name for each in rows(model, target, plan) if each.differs}


def test_the_call_after_a_refused_one_is_right(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_these_calls(monkeypatch, {"own weights"})
    monkeypatch.setattr(RankGroup, "reset", lambda group: None)
    [row] = [row for row in rows(model, "words", VOCAB) if row.differs]
    assert (row.kind, row.name) == ("error", "of the call after the one of tokens with the index 8")


def test_an_input_that_is_cut_for_its_size_alone_differs_from_the_whole_one(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_these_calls(monkeypatch, {"own weights"})
    plan = Path(model).with_name("my.plan")
    plan.write_text(ALONE)
    job = CompileJob(f"{model}:table", str(plan), str(plan.with_name("program")))
    with pytest.raises(StrettoError, match="E0405"):
        compile_target(job, checked_record)
    monkeypatch.setattr(check_batch.TiedDims, "are_tied", lambda *values: True)
    program, _ = compile_target(job, checked_record)
    show_checked(program)
    assert program.manifest.checked["result"] == "failed"
    assert "roles taken from equal sizes: x, table; state them with shard inputs" in capsys.readouterr().out
    plan.write_text(ALONE + '\nshard inputs "table" whole')
    program, _ = compile_target(job, checked_record)
    assert program.manifest.checked["result"] == "passed"


def test_the_record_of_a_check_has_the_calls(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Path(model).with_name("my.plan")
    plan.write_text(DATA)
    job = CompileJob(f"{model}:layers", str(plan), str(plan.with_name("program")))
    program, _ = compile_target(job, checked_record)
    show_checked(program)
    assert program.manifest.checked["result"] == "passed" and program.manifest.checked["calls"] == "compared"
    assert "were not compared" not in capsys.readouterr().out


def test_calls_that_stretto_compile_refuses_are_not_compared(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Path(model).with_name("my.plan")
    plan.write_text(PIPELINE)
    job = CompileJob(f"{model}:refused", str(plan), str(plan.with_name("program")))
    program, _ = compile_target(job, checked_record)
    show_checked(program)
    assert program.manifest.checked["result"] == "passed"
    assert "the calls of stretto.compile were not compared: it refuses a call: E04" in capsys.readouterr().out


def test_calls_in_eval_mode_that_are_refused_leave_the_others_compared(model: str) -> None:
    found = rows(model, "branches", DATA)
    [refused] = [row for row in found if row.kind == CALLS]
    assert refused.note.startswith("it refuses those from eval: E02")
    assert differing(found) == set() and any(row.name.endswith("(step(scale=3))") for row in found)
