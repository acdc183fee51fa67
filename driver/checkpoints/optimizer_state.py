"""An optimizer's state by the model's own names of parameters, in the form that torch's checkpoints hold.

That form is {"state": {name: {key: value}}, "param_groups": [{"params": [name, ...], ...}]}. A parameter that was never
stepped has no state, neither in the optimizer nor in the file; after loading it starts without state.
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
from ..state.state_tensors import names_text

_STATE, _GROUPS, _PARAMS = "state", "param_groups", "params"


def state_by_name(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's present state, by name. Raises StrettoError E0611 as `_names` does."""
    names = _names(model, optimizer)
    saved = optimizer.state_dict()
    return {
        _STATE: {names[number]: values for number, values in saved[_STATE].items()},
        _GROUPS: [{**group, _PARAMS: [names[number] for number in group[_PARAMS]]} for group in saved[_GROUPS]],
    }


def empty_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """State to load into: that of the optimizer after it has stepped all parameters. The optimizer stays as it is.

    A step with zero gradients and zero learning rate shows which tensors the state has and how they are placed.
    """
    with _after_zero_step(optimizer):
        return state_by_name(model, optimizer)


def groups_in_order(
    model: nn.Module, optimizer: Optimizer, saved: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The saved parameter groups in the optimizer's order; E0611 where one of the optimizer's groups was not saved."""
    known = {frozenset(group[_PARAMS]): group for group in saved}
    names = iter(_names(model, optimizer))
    ordered = []
    for group in optimizer.param_groups:
        group_names_here = [next(names) for _ in group[_PARAMS]]
        if frozenset(group_names_here) not in known:
            raise StrettoError(
                "E0611",
                f"the checkpoint has no parameter group of {names_text(group_names_here)}",
                notes=tuple((f"it has {names_text(sorted(group_names))}", None) for group_names in known),
                help="build the optimizer with the parameter groups that were saved",
            )
        ordered.append(known[frozenset(group_names_here)])
    return ordered


def fill_optimizer(
    model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> None:
    """Load state by name and the options of the groups into the optimizer; parameters without state start afresh."""
    numbers = {name: number for number, name in enumerate(_names(model, optimizer))}
    own_groups = optimizer.state_dict()[_GROUPS]
    optimizer.load_state_dict(
        {
            _STATE: {numbers[name]: values for name, values in state.items()},
            _GROUPS: [
                {**group, _PARAMS: own_group[_PARAMS]} for own_group, group in zip(own_groups, groups, strict=True)
            ],
        }
    )


def state_names(saved: Collection[str], parameters: Collection[str]) -> Mapping[str, list[str]]:
    """For each parameter, the names of its optimizer state in a checkpoint, such as "optimizer.state.up.weight.step".

    >>> dict(owned_by(["optimizer.state.a.b.step", "optimizer.param_groups"], ["a", "a.b", "c"]))
    {'a.b': ['optimizer.state.a.b.step']}
    """
    known = set(parameters)
    owned: defaultdict[str, list[str]] = defaultdict(list)
    for name in saved:
        if not name.startswith(f"optimizer.{_STATE}."):
            continue
        parts = name.split(".")[2:]
        owners = [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
        owner = next((candidate for candidate in owners if candidate in known), None)
        if owner is not None:
            owned[owner].append(name)
    return owned


def _names(model: nn.Module, optimizer: Optimizer) -> Sequence[str]:
    """The model's names of the optimizer's parameters, in the optimizer's order; E0611 if one is not the model's."""
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group[_PARAMS]]
    unknown = sum(id(parameter) not in known for parameter in parameters)
    if unknown:
        raise StrettoError(
            "E0611",
            f"{unknown} of the {len(parameters)} parameters in this {type(optimizer).__name__} are not the model's",
            help="make the optimizer of model.parameters(), after stretto.compile(model, plan=...)",
        )
    return [known[id(parameter)] for parameter in parameters]


@contextmanager
def _after_zero_step(optimizer: Optimizer) -> Iterator[None]:
    """Inside, the optimizer has made one step that changes no parameter; afterwards it is as it was."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group[_PARAMS]]
    gradients = [parameter.grad for parameter in parameters]
    rates = [(group, group["lr"]) for group in optimizer.param_groups if "lr" in group]
    state, optimizer.state = optimizer.state, defaultdict(dict)
    try:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if has_local_part(parameter) else None
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
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
