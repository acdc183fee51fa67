"""What eager PyTorch returns for a call, to find changes of a call that matter to the model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ..check.users_call import UsersCall, tensors_of
from .arguments import FAILURES, Arguments, fresh
from .structures import Structure


def returned(model: nn.Module, arguments: Arguments) -> Any:
    """What a copy of the model returns, with one seed; None where it does not take the arguments."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            return UsersCall(fresh(arguments), False).result(copy.deepcopy(model), {}, lambda tensor: tensor)
        except FAILURES:
            return None


def are_equal(own: Any, other: Any) -> bool:
    """Whether two results have one structure and the same values and dtypes; NaN equals NaN."""
    if Structure.of(own).difference(Structure.of(other)):
        return False
    pairs = zip(tensors_of(own), tensors_of(other), strict=True)
    return all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs
    )
