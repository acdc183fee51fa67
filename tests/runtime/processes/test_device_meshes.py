"""Device meshes: an order of ranks that this torch cannot connect is refused."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from stretto.runtime.errors import RunError
from stretto.runtime.processes.device_meshes import check_unsorted_groups


def test_a_torch_whose_groups_are_sorted_refuses_axes_that_nest_in_another_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks = torch.tensor([[0, 2, 1, 3]])
    check_unsorted_groups(ranks)
    monkeypatch.setattr(dist, "new_group", lambda ranks, timeout=None, backend=None: None)
    with pytest.raises(RunError, match=r"no process group with its ranks in the order \[0, 2, 1, 3\]") as caught:
        check_unsorted_groups(ranks)
    assert caught.value.code == "E0355" and "in the order in which they nest" in caught.value.help
