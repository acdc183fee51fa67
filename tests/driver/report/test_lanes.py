"""What `explain` says of the lanes of a program, and their picture."""

from __future__ import annotations

import re

import pytest
import stretto
import torch
from stretto.driver.report.explain import Explanation, explain
from stretto.driver.report.lanes_svg import svg
from stretto.driver.report.show_explanation import show_explanation
from torch import nn

from ...end_to_end.checking import compiled
from ...end_to_end.models import Size, gpt, plan


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    lines = ("shard activations tokens over tp", "overlap { fuse all_reduce+layer_norm }")
    return explain(compiled(gpt(Size(layers=2)), plan("gpt", "tp=2", *lines)).program)


def test_each_collective_says_where_it_starts_and_ends_and_what_is_beside_it(explanation: Explanation) -> None:
    functions = {each.name: each for each in explanation.overlap}
    backward = next(each for name, each in functions.items() if name.endswith("backward"))
    assert backward.calls == 2 and functions["main"].calls == 1
    hidden, exposed = (
        [each for each in backward.collectives if bool(each.operations) is some] for some in (True, False)
    )
    assert any(each.flops > 0 and each.bytes > 0 and each.hidden > 0 for each in hidden)
    assert exposed and all(each.hidden == 0 for each in exposed)
    assert all(each.start.module and each.axes == ("tp",) for each in backward.collectives)
    assert sum(each.duration - each.hidden for each in backward.collectives) < backward.total


def test_the_text_lists_functions_the_share_and_near_misses(
    explanation: Explanation, capsys: pytest.CaptureFixture[str]
) -> None:
    show_explanation(explanation)
    text = capsys.readouterr().out
    assert "Communication beside work" in text and re.search(r"backward +2 x", text)
    assert "of the communication of a step is hidden, by counts" in text
    assert 'scatter-norms: "all_reduce+layer_norm" fuses nothing: ' in text[text.index("Near misses") :]


def test_the_picture_has_a_box_for_each_operation_that_takes_time(explanation: Explanation) -> None:
    [backward] = [each for each in explanation.overlap if each.name.endswith("backward")]
    picture = svg([("before", backward), ("after", backward)])
    boxes = sum(work.end > work.begin and work.op != "comm.wait" for work in backward.work)
    assert picture == svg([("before", backward), ("after", backward)])
    assert picture.count("<title>") >= 2 * boxes and picture.count("communication that work waits for") == 1


def test_an_op_that_leaves_out_a_result_is_counted() -> None:
    """The first convolution of a model has no gradient of its input."""
    torch.manual_seed(0)
    model = stretto.compile(nn.Conv2d(3, 4, 3), plan="mesh (dp=2)")
    model(torch.randn(4, 3, 6, 6)).sum().backward()
    functions = explain(stretto.program_of(model)).overlap
    assert sum(each.total for each in functions) > 0
