"""Which inputs are the batch: what the plan says, what the operations tie to it, and nothing by equal numbers alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import product

import pytest
import stretto
import torch
from stretto.diagnostics import StrettoError
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest
from stretto.dsl import Plan, PlanError
from stretto.runtime.checks.program_check import check
from torch import Tensor, nn
from torch.nn import functional as F

from ..subsets import only

ROWS, WIDTH = 8, 6
INPUTS: dict[str, Tensor] = {}
ALONE, TOGETHER = "per microbatch", ""


class Retrieval(nn.Module):
    """Scores of rows against a table of as many entries; labels are entries."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """(rows, width), (entries, width) -> the mean of each row's greatest score."""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return (x @ table.t()).logsumexp(1).mean()


class Weighted(Retrieval):
    """Classes with weights, as many as rows."""

    def forward(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        """(rows, width), (rows,), (classes,) -> the loss."""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return F.cross_entropy(torch.cat([x, x[:, :2]], 1), y, weight=weight)


class Sums(Retrieval):
    """Returns sums of as many features as a microbatch has rows."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(rows, width) -> a loss, and two sums over rows."""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x.square().mean(), x[:, :2].detach().sum(0)


def inputs_of(model: nn.Module) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    x, table = torch.randn(ROWS, WIDTH, generator=random), torch.randn(ROWS, WIDTH, generator=random)
    if isinstance(model, Weighted):
        return {"x": x, "y": torch.arange(ROWS) % 8, "weight": torch.rand(ROWS, generator=random)}
    return {"x": x} if isinstance(model, Sums) else {"x": x, "table": table}


def plan(words: str, more: str = "", mesh: str = "pp=2") -> str:
    return f"mesh ({mesh})\n{more}pipeline over pp {{ microbatches 4  {words} }}\n"


def loss(model: nn.Module, text: str, inputs: Mapping[str, Tensor]) -> Tensor:
    result: Tensor = stretto.compile(model, plan=text)(**inputs)
    return result


@pytest.mark.parametrize(
    ("kind", "words"),
    only([(Retrieval, ALONE), (Weighted, TOGETHER)], product([Retrieval, Weighted], [ALONE, TOGETHER])),
)
def test_an_input_that_only_its_rows_make_the_batch_is_refused_by_name_with_the_line_to_add(
    kind: type[nn.Module], words: str
) -> None:
    model = kind()
    inputs = inputs_of(model)
    name = [*inputs][-1]
    with pytest.raises(StrettoError, match=f'input "{name}" has 8 rows, as many as the batch') as caught:
        loss(model, plan(words), inputs)
    assert caught.value.code == "E0405"
    line = f'shard inputs "{name}" whole'
    assert line in caught.value.help
    want = model(**inputs)
    if words == ALONE:
        parts = [{n: t if n == name else t[r : r + 2] for n, t in inputs.items()} for r in range(0, ROWS, 2)]
        want = torch.stack([model(**part) for part in parts]).mean()
    torch.testing.assert_close(loss(model, plan(words, line + "\n"), inputs), want)


def test_a_table_before_the_batch_is_whole_when_the_plan_says_so() -> None:
    class Swapped(Retrieval):
        def forward(self, table: Tensor, x: Tensor) -> Tensor:
            return super().forward(x, table)

    model, inputs = Swapped(), inputs_of(Retrieval())
    text = plan(ALONE, 'shard inputs "table" whole\n')
    parts = [model(inputs["table"], inputs["x"][r : r + 2]) for r in range(0, ROWS, 2)]
    torch.testing.assert_close(loss(model, text, inputs), torch.stack(parts).mean())


@pytest.mark.parametrize("words", [ALONE, TOGETHER])
def test_where_the_plan_names_the_batch_all_other_inputs_are_whole(words: str) -> None:
    model = Retrieval()
    inputs = inputs_of(model)
    parts = [model(inputs["x"][r : r + 2], inputs["table"]) for r in range(0, ROWS, 2)]
    got = loss(model, plan(words, 'shard inputs "x" batch\n'), inputs)
    torch.testing.assert_close(got, torch.stack(parts).mean())


def test_an_input_of_other_rows_than_the_batch_is_cut_by_its_statement() -> None:
    model, inputs = Retrieval(), inputs_of(Retrieval())
    inputs["table"] = torch.randn(4, WIDTH)
    text = 'mesh (dp=2, tp=2)\nshard inputs "x" batch over dp\nshard inputs "table" dim 0 over tp\n'
    torch.testing.assert_close(loss(model, text, inputs), model(**inputs))
    program = compile_program(CompileRequest.of(model, (), inputs, Plan.parse(text))).program
    assert [[shard.axes for shard in each.shards] for each in program.of_kind("input")] == [[("dp",)], [("tp",)]]
    assert check(program).passed


def test_over_ranks_it_is_a_remark_and_values_are_those_of_eager() -> None:
    model, inputs = Retrieval(), inputs_of(Retrieval())
    program = compile_program(CompileRequest.of(model, (), inputs, Plan.parse("mesh (dp=2)"))).program
    messages = [remark["message"] for remark in program.remarks if remark["pass"] == "check-batch"]  # type: ignore[union-attr,index,call-overload]
    assert len(messages) == 1 and 'shard inputs "table" whole' in messages[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(loss(model, "mesh (dp=2)", inputs), model(**inputs))


def test_rows_of_a_result_are_those_of_the_batch_only_where_they_are_tied_to_it() -> None:
    with pytest.raises(StrettoError, match=r"of shape \[2\] is no floating number and has no row") as caught:
        loss(Sums(), plan(ALONE), inputs_of(Sums()))
    assert caught.value.code == "E0404"


def test_a_misspelt_input_offers_the_nearest() -> None:
    with pytest.raises(PlanError, match='"tabel" matches no input of the model') as caught:
        loss(Retrieval(), plan(ALONE, 'shard inputs "tabel" whole\n'), inputs_of(Retrieval()))
    assert (caught.value.code, caught.value.help) == ("E0114", 'did you mean "table"?')
