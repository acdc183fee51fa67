"""Passes on modules whose stages have entries of their own keep what every stage gives."""

from __future__ import annotations

import pytest
from stretto.ir.equivalence import compare
from stretto.ir.module import operations
from stretto.passes.manager import PassManager
from stretto.passes.overlap.hoist_collectives import HoistCollectives
from stretto.passes.overlap.start_collectives import StartCollectives

from ...ir.interpreter.staged import captured, in_order


@pytest.mark.parametrize("tasks_ahead", [0, 1, 2, 9])
def test_collectives_and_receives_that_begin_early_keep_the_values_and_the_order(tasks_ahead: int) -> None:
    module = in_order()
    PassManager([HoistCollectives(), StartCollectives(tasks_ahead)]).run(module)
    names = [op.operation.name for f in module.functions().values() for op in operations(f)]
    assert names.count("comm.receive_start") == 5 and "comm.receive" not in names and "comm.all_reduce" not in names
    assert compare(captured(), module).is_equal


def test_remarks_on_receives_name_the_stage_that_sends() -> None:
    module = in_order()
    remarks = [str(remark) for remark in PassManager([HoistCollectives(), StartCollectives()]).run(module)]
    assert any("receive from pp=1 runs beside other work" in remark for remark in remarks)
    assert any("receive from pp=0 stays exposed" in remark for remark in remarks)
