"""Calls of other sizes reuse the program of the first call, or the log says why they do not."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import Any

import pytest
import stretto
import torch
from stretto.driver.compile import dynamic_sizes
from stretto.driver.model.compiled_module import compiled_module
from stretto.runtime.program.program import Program
from stretto.runtime.prover.prove import prove
from torch import Tensor, nn
from torch.nn import functional as F

from ...rank_threads import begun_and_left, rank_threads
from ..models import PLANS, PlainGPT

BATCH: dict[str, Any] = {"x": {0: "batch"}, "y": {0: "batch"}}
DP = "mesh (dp=2)"
TP = 'mesh (tp=2)\nshard "up" columns over tp\nshard "down" rows over tp'


class Mlp(nn.Module):
    """x (batch, 6), y (batch) -> the loss, or without y the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        logits: Tensor = self.down(self.norm(self.up(x)).relu())
        return logits if y is None else F.cross_entropy(logits, y, ignore_index=-1)


class Branching(Mlp):
    """Another function for a batch of more than 20."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return super().forward(x * 2 if x.shape[0] > 20 else x, y)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The second word of each line: "compiled" or "bound"."""
    return [message.split()[1] for message in caplog.messages]


def data(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed + rows)
    y = torch.randint(5, (rows,), generator=generator)
    y[0] = -1
    return torch.randn(rows, 6, dtype=torch.float64, generator=generator), y


def check(plain: nn.Module, compiled: nn.Module, *inputs: Tensor) -> None:
    """Loss and gradients are those of the plain model."""
    for model in (plain, compiled):
        model.zero_grad()
    expected, actual = plain(*inputs), compiled(*inputs)
    expected.backward()
    actual.backward()
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-9, atol=1e-9)


def twins(model: nn.Module, plan: str, dynamic: Any = BATCH) -> tuple[nn.Module, nn.Module]:
    plain = model.double()
    return plain, stretto.compile(copy.deepcopy(plain), plan=plan, dynamic=dynamic)


@pytest.mark.parametrize("plan", [DP, pytest.param(TP, marks=pytest.mark.slow)], ids=["dp", "tp"])
def test_batches_of_many_sizes_share_one_compilation(plan: str, caplog: pytest.LogCaptureFixture) -> None:
    plain, compiled = twins(Mlp(), plan)
    with caplog.at_level(logging.INFO, "stretto"):
        for rows in (8, 4, 10, 64, 2, 8):
            check(plain, compiled, *data(rows))
    assert logged(caplog) == ["compiled", "bound", "bound", "bound", "bound"]


@pytest.mark.slow
def test_a_last_batch_that_ranks_cannot_share_evenly_is_right(caplog: pytest.LogCaptureFixture) -> None:
    plain, compiled = twins(Mlp(), "mesh (dp=3)")
    with caplog.at_level(logging.INFO, "stretto"):
        for rows in (6, 5, 9, 7, 2):
            check(plain, compiled, *data(rows))
    assert logged(caplog) == ["compiled", "compiled", "bound", "bound", "bound"]


def test_inference_is_dynamic_too(caplog: pytest.LogCaptureFixture) -> None:
    plain, compiled = twins(Mlp(), DP)
    with torch.no_grad(), caplog.at_level(logging.INFO, "stretto"):
        for rows in (8, 6, 12):
            torch.testing.assert_close(compiled(data(rows)[0]), plain(data(rows)[0]), rtol=1e-9, atol=1e-9)
    assert logged(caplog) == ["compiled", "bound", "bound"]


def test_a_batch_of_one_has_its_own_program(caplog: pytest.LogCaptureFixture) -> None:
    plain, compiled = twins(Mlp(), DP)
    with caplog.at_level(logging.INFO, "stretto"):
        for rows in (4, 1):
            x, y = data(rows)
            check(plain, compiled, x, y.clamp(min=0))
    assert logged(caplog) == ["compiled", "compiled"]


@pytest.mark.slow
def test_a_branch_of_the_model_on_a_size_is_another_program(caplog: pytest.LogCaptureFixture) -> None:
    plain, compiled = twins(Branching(), DP)
    with caplog.at_level(logging.INFO, "stretto"):
        for rows in (8, 16, 24, 30, 20, 40):
            check(plain, compiled, *data(rows))
    assert logged(caplog) == ["compiled", "bound", "compiled", "bound", "bound", "bound"]


@pytest.mark.slow
def test_a_size_out_of_its_range_is_compiled_for_itself(caplog: pytest.LogCaptureFixture) -> None:
    plain, compiled = twins(Mlp(), DP, {"x": {0: ("batch", 2, 40)}, "y": {0: "batch"}})
    with caplog.at_level(logging.INFO, "stretto"):
        for rows in (8, 44, 12):
            check(plain, compiled, *data(rows))
    assert logged(caplog) == ["compiled", "compiled", "bound"]


def test_a_static_batch_that_does_not_divide_is_still_refused() -> None:
    compiled = stretto.compile(Mlp().double(), plan=DP)
    with pytest.raises(stretto.StrettoError) as error:
        compiled(*data(5))
    assert error.value.code == "E0401"


def test_marks_of_torch_make_dims_dynamic(caplog: pytest.LogCaptureFixture) -> None:
    plain, compiled = twins(Mlp(), DP, None)
    with caplog.at_level(logging.INFO, "stretto"):
        for rows in (8, 12):
            x, y = data(rows)
            torch._dynamo.mark_dynamic(x, 0)
            torch._dynamo.mark_dynamic(y, 0)
            check(plain, compiled, x, y)
        check(plain, compiled, *data(6))
    assert logged(caplog) == ["compiled", "bound", "bound"]


@pytest.mark.slow
def test_where_programs_differ_every_size_is_compiled_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = dynamic_sizes.fit

    def differing(trees: Any, *rest: Any) -> Any:
        trees[1]["functions"]["main"]["code"][0]["op"] = "aten.other.default"
        return kept(trees, *rest)

    monkeypatch.setattr(dynamic_sizes, "fit", differing)
    plain, compiled = twins(Mlp(), DP)
    with caplog.at_level(logging.INFO, "stretto"):
        for rows in (8, 12, 6):
            check(plain, compiled, *data(rows))
    assert logged(caplog) == ["compiled", "compiled", "compiled"]
    assert sum("every size" in message for message in caplog.messages) == 2
    compiled(*data(12))
    assert any("every size" in str(remark) for remark in stretto.program_of(compiled).remarks)  # type: ignore[union-attr]
    assert "every size is compiled for itself, because program.functions.main.code[0].op is 'aten." in caplog.text


def test_programs_of_many_sizes_run_on_the_same_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stretto.driver.model.program_cache.MAX_VARIANTS", 2)
    before = rank_threads()
    plain, compiled = twins(Mlp(), DP)
    waiting = compiled(*data(8))
    for rows in (4, 5, 10, 7, 6):
        check(plain, compiled, *data(rows))
    assert len(rank_threads() - before) == 2
    assert len(compiled_module(compiled)._programs._keys) == 2
    compiled.zero_grad()
    waiting.backward()  # of a program that is not kept any longer
    plain.zero_grad()
    plain(*data(8)).backward()
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-9, atol=1e-9)
    del compiled, waiting, other
    assert not begun_and_left(before)


def test_a_dim_that_is_not_marked_is_compiled_again_and_the_log_says_how_to_avoid_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain, compiled = twins(Mlp(), DP, None)
    with caplog.at_level(logging.INFO, "stretto"):
        for rows in (8, 12):
            check(plain, compiled, *data(rows))
    assert logged(caplog) == ["compiled", "compiled"]
    assert 'inputs changed; dim 0 of "x" is 12, was 8 (dynamic={"x": {0: ...}} shares one); dim 0 of "y"' in caplog.text
    assert 'compiled again, because inputs changed; dim 0 of "x" is 12' in str(stretto.program_of(compiled).remarks)


def test_the_log_names_the_condition_that_a_size_does_not_meet(caplog: pytest.LogCaptureFixture) -> None:
    _, compiled = twins(Mlp(), DP)
    with torch.no_grad(), caplog.at_level(logging.INFO, "stretto"):
        for rows in (8, 5):
            compiled(data(rows)[0])
    assert (
        "inputs changed; batch = 5; the program for other sizes: it needs batch % 2 == 0; for batch"
        in caplog.messages[1]
    )


class Telling(Mlp):
    """Scales by a number that it makes of the batch, and returns it too."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        rows = x.shape[0]
        if y is None:
            return super().forward(x), rows
        return super().forward(x, y) * torch.tensor([1.0 + rows], dtype=x.dtype).sum()


def test_a_tensor_that_a_forward_makes_of_a_size_is_not_the_first_calls() -> None:
    plain, compiled = twins(Telling(), DP)
    for rows in (4, 6, 8):
        check(plain, compiled, *data(rows))


def test_a_number_that_a_forward_returns_is_not_the_first_calls() -> None:
    _, compiled = twins(Telling(), DP)
    with torch.no_grad():
        assert [compiled(data(rows)[0])[1] for rows in (4, 6)] == [4, 6]


def test_a_saved_program_has_its_sizes_and_is_bound_without_the_model(tmp_path: Any) -> None:
    _, compiled = twins(Mlp(), DP)
    compiled(*data(8))
    variants = compiled_module(compiled)
    [[family]] = variants._with_sizes.values()
    family.program.save(tmp_path / "p")
    bound = Program.load(tmp_path / "p").bind({"batch": 22})
    assert bound.of_kind("input")[0].shape == (22, 6)
    assert prove(bound).counterexample is None
    with pytest.raises(stretto.StrettoError):
        Program.load(tmp_path / "p").bind({"batch": 9})


def test_copies_and_pickles_keep_what_is_dynamic() -> None:
    compiled = stretto.compile(Mlp().double(), plan=DP, dynamic=BATCH)
    other = copy.deepcopy(pickle.loads(pickle.dumps(compiled)))
    other(*data(4))
    assert stretto.program_of(other).symbolic is not None


def test_a_decorated_class_takes_dynamic_dims(caplog: pytest.LogCaptureFixture) -> None:
    @stretto.compile(plan=DP, dynamic=BATCH)
    class Decorated(Mlp):
        """Compiled."""

    plain = Mlp().double()
    compiled = Decorated().double()
    compiled.load_state_dict(plain.state_dict())
    with caplog.at_level(logging.INFO, "stretto"):
        check(plain, compiled, *data(4))
        check(plain, compiled, *data(6))
    assert logged(caplog) == ["compiled", "bound"]


@pytest.mark.slow
def test_gradients_that_wait_for_another_batch_size_add_up() -> None:
    plain, compiled = twins(Mlp(), DP)
    for rows, last in ((4, False), (7, True)):
        x, y = data(rows)
        plain(x, y).backward()
        if last:
            compiled(x, y).backward()
        else:
            with compiled.no_sync():
                compiled(x, y).backward()
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dp", "tp"])
def test_a_gpt_runs_with_any_batch_and_sequence_length(name: str, caplog: pytest.LogCaptureFixture) -> None:
    both = {0: "batch", 1: "seq"}
    torch.manual_seed(0)
    model = PlainGPT(2)
    model.positions = nn.Embedding(64, 16)
    plain, compiled = twins(model, PLANS[name], {"tokens": both, "targets": both})
    with caplog.at_level(logging.INFO, "stretto"):
        for batch, seq in ((4, 8), (6, 8), (8, 17), (2, 3), (10, 31)):
            tokens = torch.randint(50, (batch, seq))
            check(plain, compiled, tokens, torch.randint(50, (batch, seq)))
    assert logged(caplog) == ["compiled", *["bound"] * 4]


def test_a_pipeline_takes_every_batch_that_its_microbatches_share(caplog: pytest.LogCaptureFixture) -> None:
    plan = "mesh (pp=2)\npipeline over pp { schedule 1f1b  microbatches 2 }"
    plain, compiled = twins(Mlp(), plan)
    with caplog.at_level(logging.INFO, "stretto"):
        for rows in (8, 12, 6):
            check(plain, compiled, *data(rows))
    assert logged(caplog) == ["compiled", "bound", "bound"]
    with pytest.raises(stretto.StrettoError, match="which 2 microbatches cannot share"):
        compiled(*data(7))
