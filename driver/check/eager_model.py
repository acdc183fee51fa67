"""The eager side of a check: an uncompiled model with the values and the random numbers of the program.

For a check in float64 every floating dtype inside the model is raised, so that casts lose nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ...diagnostics import StrettoError
from ...runtime.checks.model_and_program import Key, OneDevice
from ...runtime.checks.report import CheckRow, Verdict
from ...runtime.philox import RngState
from ...runtime.program.reference import raised_dtype
from .float64_kernels import InFloat64
from .op_dtypes import OpDtypes, dtype_rows
from .users_call import UsersCall, tensors_of


class EagerModel(OneDevice):
    """`model`, called as `call` says.

    Its parameters and buffers get `values`. `names` are those of the call's tensors, by index of the program's input.
    If it is `raised`, every floating dtype inside the model is raised to float64. `buffers` are the names of those
    whose new values are compared; `found` is what the caller has found of the program so far, `ir` the
    program's module.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        call: UsersCall,
        names: Mapping[int | None, str],
        values: Mapping[Key, Tensor],
        buffers: set[str],
        *,
        found: Sequence[CheckRow] = (),
        ir: str = "",
        raised: bool,
        state_of: Callable[[int], RngState],
    ) -> None:
        call.refuse_other_inputs(names.values())
        self._call, self._names = call, names
        self._raised = raised
        self._found, self._ir = found, ir
        self._dtypes = OpDtypes()
        self._step = 0
        self._state_of = state_of
        self._buffers = buffers
        self._undeclared: dict[str, Tensor] = {}
        self.result: Any = None
        """What the last forward returned."""
        dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
        self._own_dtype = next(iter(dtypes)) if len(dtypes) == 1 else None
        self._model = _raised(model) if raised else model
        self.changed = {}
        tensors: dict[Key, Tensor] = {("parameter", name): tensor for name, tensor in model.named_parameters()}
        named = dict(model.named_buffers())
        self._held = _held(call, {name for kind, name in values if kind == "buffer"} | buffers - named.keys(), named)
        tensors |= {("buffer", name): tensor for name, tensor in (named | self._held).items()}
        for tensor in self._held.values() if raised else ():
            tensor.data = tensor.data.to(raised_dtype(tensor.dtype))
        for key, tensor in tensors.items():
            if key in values:
                dtype = raised_dtype(tensor.dtype) if raised else tensor.dtype
                tensor.data = values[key].detach().to(dtype, copy=True)
        super().__init__({name: tensor for (kind, name), tensor in tensors.items() if kind == "parameter"})

    def forward(self, inputs: Mapping[int | None, Tensor]) -> list[Tensor]:
        """The outputs for inputs by index."""
        from .eager_random_ops import ProgramDraws  # with the interpreter, which a base install cannot import

        inputs_by_name = {name: inputs[index] for index, name in self._names.items() if index in inputs}
        inputs_by_name |= self._not_differentiated(inputs_by_name)
        before = {name: value.detach().clone() for name, value in self._named_buffers()}
        state = self._state_of(self._step)
        self._step += 1
        with _python_randomness(self._step):
            if not self._raised:
                with ProgramDraws(state), self._dtypes:
                    self.result = self._call.result(self._model, inputs_by_name, _itself)
            else:
                with _float64(self._own_dtype), ProgramDraws(state, raised_dtype):
                    self.result = self._call.result(self._model, inputs_by_name, _raise_tensor)
        buffers = dict(self._named_buffers())
        self._refuse_other_changes(before, buffers)
        self.changed = {name: buffers[name].detach().clone() for name in self._buffers}
        return tensors_of(self.result)

    def _named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._model.named_buffers()
        yield from self._held.items()

    @property
    def forwards(self) -> int:
        """How many forwards it has made."""
        return self._step

    def findings(self) -> Sequence[CheckRow]:
        """See `OneDevice.findings`: with the lines that compute in other dtypes, unless all of them are raised."""
        dtypes = [] if self._raised or not self._ir else dtype_rows(self._dtypes.found, self._ir)
        note = "eager mode gives this input a gradient, and the program none"
        lost = [CheckRow("gradient", name, math.inf, Verdict.DIFFERS, note) for name in self.undeclared_gradients()]
        return [*self._found, *dtypes, *lost]

    def undeclared_gradients(self) -> list[str]:
        """The inputs of the last forward for which its backward gave a gradient that the program does not have."""
        return [name for name, value in self._undeclared.items() if value.grad is not None and bool(value.grad.any())]

    def _not_differentiated(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leaves for the inputs that require a gradient in the target's call, and that the program gives none."""
        own = self._call.tensors
        self._undeclared = {
            name: value.detach().clone().requires_grad_()
            for name, value in inputs.items()
            if own[name].requires_grad and not value.requires_grad
        }
        return self._undeclared

    def _refuse_other_changes(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        """Raise StrettoError E0665 for a buffer that this forward changed, and that is not one of those compared."""
        for name, value in after.items():
            old = before.get(name)
            if name not in self._buffers and old is not None and not _same(old, value):
                raise StrettoError(
                    "E0665",
                    f'in eager mode the forward changes buffer "{name}", and the captured module leaves it as it is',
                    help="this is a fault of the capture: please report it with the model",
                )


def _held(call: UsersCall, names: set[str], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By name: the buffers that are tensors of objects among the call's arguments."""
    found = ((name, call.held(name)) for name in sorted(names - own.keys()))
    return {name: tensor for name, tensor in found if tensor is not None}


def _raised(model: torch.nn.Module) -> torch.nn.Module:
    """The model with float64 in its floating parameters and buffers, which stay the objects that others may hold."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.to(raised_dtype(tensor.dtype))
    return model


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _same(old: Tensor, new: Tensor) -> bool:
    return old.shape == new.shape and torch.equal(old.nan_to_num(), new.to(old.dtype).nan_to_num())


@contextmanager
def _python_randomness(seed: int) -> Iterator[None]:
    """Inside, what the forward draws in Python follows from the seed.

    Else a second run of the model would draw other numbers, and their effect would be taken for that of rounding.
    """
    python, of_numpy = random.getstate(), np.random.get_state()  # forwards draw from the global one
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)


@contextmanager
def _float64(own: torch.dtype | None) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with InFloat64(own), _Raise():  # type: ignore[no-untyped-call]  # torch leaves it untyped
            yield
    finally:
        torch.set_default_dtype(before)


class _Raise(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Inside, every op computes in float64: dtype arguments are raised, and so are the results of factories."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = pytree.tree_map(_raise_dtype, (tuple(args), dict(kwargs or {})))
        return pytree.tree_map_only(Tensor, _raise_tensor, func(*args, **kwargs))


def _raise_dtype(value: Any) -> Any:
    return raised_dtype(value) if isinstance(value, torch.dtype) else value


def _raise_tensor(tensor: Tensor) -> Tensor:
    raised = raised_dtype(tensor.dtype)
    return tensor if raised == tensor.dtype else tensor.to(raised)
