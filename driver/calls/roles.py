"""Which inputs are cut into microbatches where the plan does not say: what equal sizes decide is tried in eager mode.

Where each microbatch is computed alone, an input that only happens to have as many rows as the batch must stay whole.
Capture and the reference of a check cut by one decision, so that a mistake of it would be on both sides.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...dsl.plan import Plan
from ...dsl.resolve_values import batch_inputs, states_role
from ..check.users_call import UsersCall
from ..compile.pipeline_requirements import is_alone
from .arguments import FAILURES, Arguments, fresh


@dataclass(frozen=True)
class Roles:
    """The inputs of which equal sizes alone say that they are the batch's."""

    by_size: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    """Those with which the model runs as they are, though the rest of the batch is cut: the check does not cut them."""


def roles_by_size(model: nn.Module, arguments: Arguments, plan: Plan) -> Roles:
    """None unless the plan computes each microbatch alone."""
    if not is_alone(plan) or plan.pipeline is None:
        return Roles()
    tensors = UsersCall(arguments, False).tensors
    batch = batch_inputs(plan, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    by_size = tuple(name for name in batch if not states_role(plan, name))
    rows = tensors[batch[0]].shape[0] // plan.pipeline.microbatches if batch else 0
    # One row broadcasts to any number of rows, so that it tells nothing.
    tried = by_size[1:] if rows > 1 else ()
    whole = tuple(name for name in tried if _runs_with(model, arguments, tensors, set(batch) - {name}, rows))
    return Roles(by_size, whole)


def _runs_with(model: nn.Module, arguments: Arguments, tensors: Mapping[str, Tensor], cut: set[str], rows: int) -> bool:
    """Whether eager mode takes the first rows of the inputs in `cut`, and all others whole."""
    given = {name: tensor[:rows] if name in cut else tensor for name, tensor in tensors.items()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            UsersCall(fresh(arguments), False).results(copy.deepcopy(model), given, lambda tensor: tensor.clone())
        except FAILURES:
            return False
    return True
