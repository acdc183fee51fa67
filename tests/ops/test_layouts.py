"""Every op of the table gives the same for operands of other strides, in the layout that the table says it needs."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator

import pytest
import torch
from stretto.ops.table import Layout, op_table

from .arguments import Source, sources
from .database_calls import walk_databases
from .layouts import OpCall, differences
from .own_calls import OWN_OPS, own_call
from .schema_calls import schema_calls

SAMPLED = 16
"""By default one of so many ops with guessed arguments is run; `-m slow` runs all."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def of(source: Source) -> list[str]:
    return [name for name, its in sources().items() if its is source]


def found_in(calls: Iterator[OpCall]) -> dict[str, list[str]]:
    """The differences by op; every op must have a call that can be judged."""
    found: dict[str, list[str]] = defaultdict(list)
    judged = set()
    for call in calls:
        result = differences(call)
        if result is not None:
            judged.add(call.op)
            found[call.op] += result
        else:
            found[call.op] += []
    not_judged = set(found) - judged
    assert not not_judged, f"no call of these could be judged: {sorted(not_judged)}"
    return {name: texts for name, texts in found.items() if texts}


def test_every_op_of_the_table_has_a_source_of_arguments_or_a_reason_to_have_none() -> None:
    assert set(sources()) == set(op_table())


def test_ops_with_arguments_of_their_own_do_not_depend_on_strides() -> None:
    assert set(of(Source.OWN)) == OWN_OPS
    assert found_in(own_call(name) for name in sorted(OWN_OPS)) == {}


def test_a_sample_of_ops_with_guessed_arguments_does_not_depend_on_strides() -> None:
    sample = of(Source.SCHEMA)[::SAMPLED]
    assert len(sample) > 20
    assert found_in(call for name in sample for call in schema_calls(name)) == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_ops_with_guessed_arguments_do_not_depend_on_strides() -> None:
    assert found_in(call for name in of(Source.SCHEMA) for call in schema_calls(name)) == {}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ops_in_the_databases_of_torch_do_not_depend_on_strides() -> None:
    pytest.importorskip("expecttest", reason="torch's databases import it")
    found: dict[str, list[str]] = defaultdict(list)
    judged = set()

    without_arguments = set(of(Source.NONE))

    def judge(call: OpCall) -> None:
        if call.op in without_arguments:
            return
        result = differences(call)
        if result is not None:
            judged.add(call.op)
            found[call.op] += result

    walk_databases(judge)
    assert {name: texts for name, texts in found.items() if texts} == {}
    assert set(of(Source.DATABASE)) <= judged


def test_the_walk_sees_an_op_whose_mark_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from stretto.runtime.program import ops

    call = own_call("aten.native_group_norm_backward.default")
    unmarked = ops.torch_op(call.op)
    monkeypatch.setitem(ops._OPS, call.op, type(unmarked)(**{**vars(unmarked), "call": unmarked.overload}))
    assert differences(call)


def test_attention_is_copied_only_where_the_last_dim_is_strided() -> None:
    from stretto.ops.table import in_layout

    heads_inside = torch.randn(2, 6, 3, 4).transpose(1, 2)
    assert in_layout(heads_inside, Layout.LAST_DIM) is heads_inside
    assert in_layout(heads_inside.transpose(2, 3), Layout.LAST_DIM).is_contiguous()  # type: ignore[attr-defined]


def test_a_grouped_product_takes_transposed_weights_as_they_are() -> None:
    from stretto.ops.table import in_layout

    weights = torch.randn(2, 8, 16).transpose(1, 2)
    assert in_layout(weights, Layout.MATRIX) is weights
    assert in_layout(weights[:, ::2], Layout.MATRIX).is_contiguous()  # type: ignore[attr-defined]
