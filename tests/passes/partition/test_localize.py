"""A rank's call: global sizes become local ones, everything else stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stretto.passes.partition.localize import with_local_sizes
from stretto.passes.sharding.rules import TensorMeta

X = "%x"


def local(op: str, args: tuple[Any, ...], whole: tuple[int, ...], part: tuple[int, ...], **kwargs: Any) -> Any:
    """The rank's call for a result of global shape `whole` of which it holds `part`."""
    return with_local_sizes(op, args, kwargs, (TensorMeta(whole, torch.float32),), [part])


@pytest.mark.parametrize(
    ("op", "args", "whole", "part", "want"),
    [
        ("aten.view.default", (X, [4, -1]), (4, 6), (2, 6), (X, [2, 6])),
        ("aten.expand.default", (X, [4, -1, 6]), (4, 5, 6), (4, 3, 6), (X, [4, 3, 6])),
        ("aten.full.default", ([4, 6], 2.5), (4, 6), (4, 3), ([4, 3], 2.5)),
        ("aten.slice_backward.default", (X, [4, 6], 1, 0, 3, 1), (4, 6), (2, 6), (X, [2, 6], 1, 0, 3, 1)),
        ("aten.slice.Tensor", (X, 1, 0, 6), (4, 6), (4, 3), (X, 1, 0, None)),
        ("aten.slice.Tensor", (X, 1, 1, 3), (4, 2), (2, 2), (X, 1, 1, 3)),
        ("aten.embedding_dense_backward.default", (X, X, 10, -1, False), (10, 6), (5, 6), (X, X, 5, -1, False)),
        (
            "aten.native_group_norm.default",
            (X, X, X, 4, 6, 9, 2, 1e-5),
            (4, 6, 9),
            (2, 6, 9),
            (X, X, X, 2, 6, 9, 2, 1e-5),
        ),
        ("aten.mm.default", (X, X), (4, 6), (2, 6), (X, X)),
    ],
)
def test_sizes_become_local(
    op: str, args: tuple[Any, ...], whole: tuple[int, ...], part: tuple[int, ...], want: tuple[Any, ...]
) -> None:
    assert local(op, args, whole, part) == (op, want, {})


def test_a_new_tensor_needs_no_operand() -> None:
    given = local("aten.new_full.default", (X, [4, 6], 2.5), (4, 6), (4, 3))
    assert given == ("aten.full.default", ([4, 3], 2.5), {"dtype": torch.float32})
    assert local("aten.new_zeros.default", (X, [4]), (4,), (4,))[:2] == ("aten.zeros.default", ([4],))


def test_a_size_given_by_name_stays_a_keyword() -> None:
    assert local("aten.full.default", (), (4, 6), (2, 6), size=[4, 6], fill_value=1) == (
        "aten.full.default",
        (),
        {"size": [2, 6], "fill_value": 1},
    )


def test_squeeze_becomes_a_reshape_lest_a_chunk_of_one_element_is_squeezed_away() -> None:
    op, args, kwargs = local("aten.squeeze.default", (X,), (4, 2), (4, 1))
    assert (op, args, kwargs) == ("aten.reshape.default", (X, [4, 1]), {})


def test_a_call_whose_result_is_whole_is_left_alone() -> None:
    assert local("aten.view.default", (X, [-1]), (24,), (24,)) == ("aten.view.default", (X, [-1]), {})
