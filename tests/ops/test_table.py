"""What stands in the table of ops, and what must not."""

from __future__ import annotations

import pytest
import torch
from stretto.ops.table import find_op, op_table

EFFECTS = (
    "aten.from_file.default", "aten.set_.source_Tensor", "aten.resize_.default", "aten.resize.default",
    "aten.as_strided.default", "aten._reshape_alias.default", "aten.data.default", "aten.pin_memory.default",
    "aten._local_scalar_dense.default", "aten.rand.default", "aten.bernoulli.default", "aten.normal.Tensor_Tensor",
    "aten.mul.out", "aten._foreach_add.List", "aten._fused_adam.default", "aten.to_sparse.default",
    "aten.quantize_per_tensor.default", "aten._nested_tensor_size.default", "aten.cudnn_batch_norm.default",
    "aten._test_check_tensor.default", "aten._pin_memory.default", "prims.device_put.default", "aten.mm.__class__",
)  # fmt: skip


def overload(name: str) -> torch._ops.OpOverload:
    namespace, base, which = name.split(".")
    found: torch._ops.OpOverload = getattr(getattr(getattr(torch.ops, namespace), base), which)
    return found


@pytest.mark.parametrize("name", EFFECTS)
def test_an_op_with_effects_beside_its_result_is_not_in_the_table(name: str) -> None:
    assert find_op(name) is None


def test_names_are_in_order_and_stand_once() -> None:
    names = [name for name in op_table() if name.startswith("aten.")]
    assert names == sorted(names)


def test_an_op_that_writes_to_an_argument_is_marked_as_one_for_references() -> None:
    own = [name for name in op_table() if name.startswith("aten.")]
    assert [name for name in own if overload(name)._schema.is_mutable and not op_table()[name].only_in_references] == []


def test_ops_that_update_statistics_without_saying_so_are_for_references_only() -> None:
    updates = ("aten.batch_norm.default", "aten.native_batch_norm.default", "aten.instance_norm.default")
    assert all(op_table()[name].only_in_references for name in updates)
