"""An optimizer's state by the model's own names of parameters, in the form that torch's checkpoints hold.

That form is {"state": {name: {key: value}}, "param_groups": [{"params": [name, ...], ...}]}. Only what is there is
saved: a parameter that was never stepped has no state, neither here nor in the file, and begins anew when it is loaded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...diagnostics import StrettoError
from ...runtime.processes.parameters import has_local_part
from ..model.optimizer_guards import no_real_step
from .held_tensors import few

_STATE, _GROUPS, _PARAMS = "state", "param_groups", "params"


def state_by_name(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The state that the optimizer has now; it is not stepped. Raises StrettoError E0611 as `_names` does."""
    names = _names(model, optimizer)
    found = optimizer.state_dict()
    return {
        _STATE: {names[number]: values for number, values in found[_STATE].items()},
        _GROUPS: [{**group, _PARAMS: [names[number] for number in group[_PARAMS]]} for group in found[_GROUPS]],
    }


def room_for_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The state that the optimizer has once it has stepped all its parameters: what to load into. It stays as it is.

    A step of zeros, with a learning rate of zero, says which tensors there are and how they are placed.
    """
    with _stepped_by_nothing(optimizer):
        return state_by_name(model, optimizer)


def in_order(model: nn.Module, optimizer: Optimizer, saved: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The saved groups of parameters in the optimizer's order; E0611 unless each of its groups is one of them."""
    known = {frozenset(group[_PARAMS]): group for group in saved}
    names = iter(_names(model, optimizer))
    ordered = []
    for group in optimizer.param_groups:
        own = [next(names) for _ in group[_PARAMS]]
        if frozenset(own) not in known:
            raise StrettoError(
                "E0611",
                f"the checkpoint has no group of parameters that is {few(own)}",
                notes=tuple((f"it has {few(sorted(each))}", None) for each in known),
                help="build the optimizer with the parameter groups that were saved",
            )
        ordered.append(known[frozenset(own)])
    return ordered


def fill_optimizer(
    model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> None:
    """Give the optimizer a state by name, and the options of its groups; parameters without state start anew."""
    numbers = {name: number for number, name in enumerate(_names(model, optimizer))}
    own = optimizer.state_dict()[_GROUPS]
    optimizer.load_state_dict(
        {
            _STATE: {numbers[name]: values for name, values in state.items()},
            _GROUPS: [{**group, _PARAMS: mine[_PARAMS]} for mine, group in zip(own, groups, strict=True)],
        }
    )


def owned_by(saved: Collection[str], parameters: Collection[str]) -> Mapping[str, list[str]]:
    """For each parameter the names in a checkpoint that are its state, such as "optimizer.state.up.weight.step".

    >>> dict(owned_by(["optimizer.state.a.b.step", "optimizer.param_groups"], ["a", "a.b", "c"]))
    {'a.b': ['optimizer.state.a.b.step']}
    """
    known = set(parameters)
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in saved:
        if not name.startswith(f"optimizer.{_STATE}."):
            continue
        steps = name.split(".")[2:]
        owners = [".".join(steps[:end]) for end in range(len(steps) - 1, 0, -1)]
        owner = next((each for each in owners if each in known), None)
        if owner is not None:
            found[owner].append(name)
    return found


def _names(model: nn.Module, optimizer: Optimizer) -> Sequence[str]:
    """The model's names of the optimizer's parameters, in the order in which it numbers them; E0611 for a stranger."""
    known = {id(each): name for name, each in model.named_parameters()}
    held = [each for group in optimizer.param_groups for each in group[_PARAMS]]
    strangers = sum(id(each) not in known for each in held)
    if strangers:
        raise StrettoError(
            "E0611",
            f"{strangers} of the {len(held)} parameters that this {type(optimizer).__name__} holds are not the model's",
            help="make the optimizer of model.parameters(), after stretto.compile(model, plan=...)",
        )
    return [known[id(each)] for each in held]


@contextmanager
def _stepped_by_nothing(optimizer: Optimizer) -> Iterator[None]:
    """Inside, the optimizer has stepped once, by nothing; then it and its parameters are as they were."""
    held = [each for group in optimizer.param_groups for each in group[_PARAMS]]
    gradients = [each.grad for each in held]
    rates = [(group, group["lr"]) for group in optimizer.param_groups if "lr" in group]
    state, optimizer.state = optimizer.state, defaultdict(dict)
    try:
        for each in held:
            each.grad = torch.zeros_like(each) if has_local_part(each) else None
        for group, rate in rates:
            group["lr"] = torch.zeros_like(rate) if isinstance(rate, Tensor) else 0.0
        with no_real_step():
            optimizer.step()
        for group, rate in rates:
            group["lr"] = rate
        yield
    finally:
        optimizer.state = state
        for group, rate in rates:
            group["lr"] = rate
        for each, gradient in zip(held, gradients, strict=True):
            each.grad = gradient
