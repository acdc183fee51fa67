"""Equal calls give equal bits, and leave nothing behind.

Sums of rank threads in the order in which these arrive would give other bits each time, and a tensor that the runtime
keeps for each call would fill the memory. Both have the right values otherwise.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ...diagnostics import StrettoError
from ...runtime.checks.report import MEMORY, REPEATED, CheckRow, Verdict
from ..check.users_call import tensors_of
from ..model.compiled_module import program_of, set_random_state
from .arguments import Arguments, fresh
from .sides import STATE

_CALLS = 3
_BITS = "equal calls of the compiled model give other bits, and do not in eager mode"


def rows_of_repeats(compiled: nn.Module, model: nn.Module, arguments: Arguments, *, trains: bool) -> list[CheckRow]:
    """A row for each tensor that changes from call to call, and one where each call leaves more tensors alive."""
    draws = bool(program_of(compiled).of_kind("random"))
    repeated = _Repeated(compiled, arguments, trains, partial(set_random_state, compiled, STATE) if draws else _nothing)
    try:
        changed = repeated.changed()
        left = repeated.left_behind()
    except StrettoError:
        return []  # the calls of the loop say why
    if changed:
        changed -= _Repeated(copy.deepcopy(model), arguments, trains, partial(torch.manual_seed, 0)).changed()
    rows = [CheckRow(REPEATED, name, math.inf, Verdict.DIFFERS, _BITS) for name in sorted(changed)]
    if left:
        note = f"{left} more tensors are alive after {_CALLS} more calls"
        rows.append(CheckRow(MEMORY, "the runtime", math.inf, Verdict.DIFFERS, note))
    return rows


@dataclass(frozen=True)
class _Repeated:
    """A call that is made again and again."""

    model: nn.Module
    arguments: Arguments
    trains: bool
    restart: Callable[[], object]
    """Makes the next call draw the same numbers."""

    def changed(self) -> set[str]:
        """The tensors that have other bits in one of the calls."""
        first = self._call()
        others = [self._call() for _ in range(_CALLS - 1)]
        return {name for other in others for name, tensor in first.items() if not _has_same_bits(tensor, other[name])}

    def left_behind(self) -> int:
        """How many tensors more there are after some calls; 0 where there is not one for each call."""
        before = _alive()
        for _ in range(_CALLS):
            self._call()
        more = _alive() - before
        return more if more >= _CALLS else 0

    def _call(self) -> Mapping[str, Tensor]:
        """Outputs and gradients; buffers are afterwards as before."""
        buffers = {name: buffer.detach().clone() for name, buffer in self.model.named_buffers()}
        self.model.zero_grad()
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(self.trains):
            self.restart()
            outputs = tensors_of(self.model(**fresh(self.arguments)))
            losses = [each for each in outputs if each.requires_grad]
            losses = [each for each in losses if not each.dim()] or losses
            if losses:
                torch.autograd.backward(losses, [torch.ones_like(each) for each in losses])
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad()
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])
        named = {f"output {index}": each.detach() for index, each in enumerate(outputs)}
        return named | {f"gradient {name}": gradient for name, gradient in gradients.items()}


def _has_same_bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def _alive() -> int:
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


def _nothing() -> None:
    """The restart of a call that draws nothing."""
