"""Eager PyTorch as the reference of a check: the uncompiled model of a target that the caller names.

It is called as the user calls it, before any rewriting of capture, and draws the random numbers of the program. So it
finds mistakes of capture, which the reference inside the program shares. A program names its model's source, too, but
nothing is loaded because a program names it: that would run whatever the author of a folder wrote.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ...diagnostics import StrettoError
from ...runtime.checks.model_and_program import Key, OneDevice, SingleDevice, rng_state_on_one_device
from ...runtime.checks.program_check import Expected
from ...runtime.philox import RngState
from ...runtime.processes.jobs import check_process
from ...runtime.program.arguments import DTYPES, Json
from ...runtime.program.json_fields import Fields
from ...runtime.program.program import Program
from ...runtime.program.records import Reference
from ...runtime.program.reference import raised_dtype
from ..compile.model_source import file_hash, source_file
from .float64_kernels import InFloat64


@dataclass(frozen=True)
class Comparison:
    """The reference that a program is checked against."""

    expected: Expected
    live: bool
    """Whether it is the uncompiled model; else it is the exported forward in the program."""
    why: str
    """For a person: what the reference is."""


def comparison_for(program: Program, against: str = "") -> Comparison:
    """The uncompiled model of the target `against`; without one, the program's own reference.

    Raises StrettoError, among them E0348 where the target has no weights, and ImportError without the compiler.
    """
    if not against:
        return Comparison(SingleDevice, False, f"the exported forward in the program{_known_of_capture(program)}")
    changed = _changed_source(program, against)
    return Comparison(eager_expected(program, against), True, f"eager PyTorch: the uncompiled model {against}{changed}")


def check_entry(arguments: Json) -> Json:
    """One process of `stretto run --ranks processes --check`."""
    against = Fields(arguments, "arguments").string_or("against", "")
    return check_process(arguments, lambda program: comparison_for(program, against).expected)


def _known_of_capture(program: Program) -> str:
    """What the manifest says of an earlier check with eager PyTorch, and how to make one."""
    if program.manifest.checked.get("result") == "passed":
        return " (which eager PyTorch agreed with when it was compiled)"
    return " (never compared with eager PyTorch: name the model with --against TARGET)"


def _changed_source(program: Program, against: str) -> str:
    """A remark where the target's file is not the one that the program was compiled from."""
    recorded = program.manifest.source.get("sha256")
    scheme, _, config = against.partition(":")
    path = config if scheme == "hf" else against.rpartition(":")[0]
    file = source_file("hf" if scheme == "hf" else "file", path)
    if recorded is None or not os.path.isfile(file) or file_hash(file) == recorded:
        return ""
    return ", whose file is not the one that the program was compiled from"


def eager_expected(program: Program, target_name: str) -> Expected:
    """Load a target as the program was compiled from one; the maker of the check's reference.

    Only options come from the program: dtype, batch and sequence. Raises StrettoError E0348 where the target has no
    weights, and those of loading; ImportError without the compiler.
    """
    from ...frontend.capture.call import bind_call
    from ...frontend.captured import Mode
    from ...frontend.targets.load_target import load_target
    from ...frontend.targets.target import Request

    source, mode = program.manifest.source, Mode(program.manifest.mode)
    asked = source.get("request")
    options: Any = asked if isinstance(asked, Mapping) else {}
    request = Request(mode=mode, **{key: options[key] for key in ("dtype", "batch", "seq") if key in options})
    target = load_target(target_name, request)
    if not target.weights_are_real:
        raise StrettoError(
            "E0348",
            f"{target_name} has shapes and no weights, so eager PyTorch cannot run it",
            help="check a smaller model of the same classes, or the program alone: stretto run DIR --check",
        )
    compute = DTYPES[str(source["compute"])] if "compute" in source else None
    call = bind_call(target.model, (), target.inputs)
    forward = eager_forward(target.model, call, mode, loss_only=mode is Mode.TRAIN, compute=compute)

    def make(program: Program, reference: Reference, values: Mapping[Key, Tensor]) -> EagerModel:
        buffers = {buffer.name for buffer in program.results_of_kind("buffer")}
        state_of = partial(rng_state_on_one_device, program)
        is_float64 = program.manifest.dtype == "float64"
        return EagerModel(target.model, forward, call.tensors, values, buffers, raised=is_float64, state_of=state_of)

    return make


def eager_forward(
    model: torch.nn.Module, call: Any, mode: Any, *, loss_only: bool, compute: torch.dtype | None
) -> Callable[..., Sequence[Tensor]]:
    """The model's own forward, from the tensors of a call to those of the result, each once, in the order of export.

    With `compute`, the model runs on casts of its parameters, as the plan's precision says.
    """
    from ...frontend.capture.traced import TracedModel, loss_of

    if compute is not None:
        return TracedModel(model, call, mode, loss_only=loss_only, compute=compute)

    def forward(*tensors: Tensor) -> Sequence[Tensor]:
        args, kwargs = call.arguments(tensors)
        result = model(*args, **kwargs)
        leaves = pytree.tree_leaves(loss_of(result) if loss_only else result)
        return list({id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}.values())

    return forward


class EagerModel(OneDevice):
    """`model`, called through `forward`, which takes the tensors of a call and returns those of the result.

    Its parameters and buffers get `values`. If it is `raised`, every floating dtype inside the model is raised to
    float64, so that casts lose nothing. `buffers` are the names of those whose new values are compared.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        forward: Callable[..., Sequence[Tensor]],
        example: Sequence[Tensor],
        values: Mapping[Key, Tensor],
        buffers: set[str],
        *,
        raised: bool,
        state_of: Callable[[int], RngState],
    ) -> None:
        self._forward, self._example = forward, example
        self._raised = raised
        self._step = 0
        self._state_of = state_of
        self._buffers = buffers
        self._model = model.double() if raised else model
        self.changed = {}
        tensors: dict[Key, Tensor] = {("parameter", name): tensor for name, tensor in model.named_parameters()}
        tensors |= {("buffer", name): tensor for name, tensor in model.named_buffers()}
        for key, tensor in tensors.items():
            if key in values:
                dtype = raised_dtype(tensor.dtype) if raised else tensor.dtype
                tensor.data = values[key].detach().to(dtype, copy=True)
        super().__init__({name: tensor for (kind, name), tensor in tensors.items() if kind == "parameter"})

    def forward(self, inputs: Mapping[int | None, Tensor]) -> list[Tensor]:
        """The outputs for inputs by index; an input that the program does not use keeps the example's value."""
        from .eager_random_ops import ProgramDraws  # with the interpreter, which a base install cannot import

        tensors = [inputs.get(index, example) for index, example in enumerate(self._example)]
        before = {name: value.detach().clone() for name, value in self._model.named_buffers()}
        state = self._state_of(self._step)
        self._step += 1
        if not self._raised:
            with ProgramDraws(state):
                outputs = self._forward(*tensors)
        else:
            with _float64(), ProgramDraws(state, raised_dtype):
                outputs = self._forward(*(tensor.to(raised_dtype(tensor.dtype)) for tensor in tensors))
        buffers = dict(self._model.named_buffers())
        self._refuse_other_changes(before, buffers)
        self.changed = {name: buffers[name].detach().clone() for name in self._buffers}
        return list(outputs)

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


def _same(old: Tensor, new: Tensor) -> bool:
    return old.shape == new.shape and torch.equal(old.nan_to_num(), new.to(old.dtype).nan_to_num())


@contextmanager
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with InFloat64(), _Raise():  # type: ignore[no-untyped-call]  # torch leaves them untyped
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
