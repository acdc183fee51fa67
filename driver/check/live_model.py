"""The uncompiled model as the reference of a check: the target is loaded again and runs eagerly on one device.

This finds mistakes of capture, which the reference inside the program shares.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ...diagnostics import StrettoError
from ...runtime.checks.model_and_program import Key, OneDevice, SingleDevice
from ...runtime.checks.program_check import Expected
from ...runtime.philox import RngState
from ...runtime.processes.jobs import check_process
from ...runtime.program.arguments import DTYPES, Json
from ...runtime.program.program import Program
from ...runtime.program.records import Reference
from ...runtime.program.reference import raised_dtype
from ..compile.model_source import file_hash, source_file
from .eager_random_ops import ProgramDropout, draws_only_masks
from .float64_kernels import InFloat64


@dataclass(frozen=True)
class Comparison:
    """The reference that a program is checked against."""

    expected: Expected
    live: bool
    """Whether it is the uncompiled model; else it is the exported forward in the program."""
    why: str
    """For a person: what the reference is, and why it is not the live model."""


def comparison_for(program: Program) -> Comparison:
    """The live model where its source exists, is unchanged and can be loaded; else the program's own reference."""
    try:
        reason = _why_not(program)
        expected = None if reason else _live_maker(program)
        if expected is not None:
            source = program.manifest.source
            return Comparison(expected, True, f"the uncompiled model, loaded again from {source['path']}")
        reason = reason or "the model is too large for random weights"
    except (ImportError, StrettoError) as error:
        what = error.message if isinstance(error, StrettoError) else f"the compiler extra is not installed ({error})"
        reason = f"the model cannot be loaded again: {what}"
    return Comparison(SingleDevice, False, f"the exported forward in the program; {reason}")


def check_entry(arguments: Json) -> Json:
    """One process of `stretto run --ranks processes --check`."""
    return check_process(arguments, lambda program: comparison_for(program).expected)


def _why_not(program: Program) -> str:
    """Why the live model cannot be used; empty where no reason is known."""
    source = program.manifest.source
    if not draws_only_masks(program):
        return "the model has random ops other than dropout, and eager torch would draw other numbers"
    if "sha256" not in source:
        return "the program has no record of its model's source"
    if not os.path.isfile(source_file(source.get("kind"), str(source["path"]))):
        return f"{source['path']} does not exist"
    if file_hash(source_file(source.get("kind"), str(source["path"]))) != source["sha256"]:
        return f"{source['path']} has changed since the program was compiled"
    return ""


def _live_maker(program: Program) -> Expected | None:
    """Load the target; returns the maker of the check's reference, or None where the model is too large for values.

    Raises StrettoError, ImportError.
    """
    from ...frontend.capture.call import bind_call
    from ...frontend.capture.traced import TracedModel
    from ...frontend.captured import Mode
    from ...frontend.targets.load_target import load_target
    from ...frontend.targets.target import Request

    source, mode = program.manifest.source, Mode(program.manifest.mode)
    request: Any = source.get("request") or {}
    compute = DTYPES[str(source["compute"])] if "compute" in source else None
    text = f"hf:{source['path']}" if source.get("kind") == "hf" else f"{source['path']}:{source.get('name')}"
    target = load_target(text, Request(mode=mode, **request))
    if not target.weights_are_real:
        return None
    call = bind_call(target.model, (), target.inputs)
    module = TracedModel(target.model, call, mode, loss_only=mode is Mode.TRAIN, compute=compute)
    module.train(target.model.training)

    def make(program: Program, reference: Reference, values: Mapping[Key, Tensor]) -> LiveModel:
        return LiveModel(program, target.model, module, call.tensors, values)

    return make


class LiveModel(OneDevice):
    """`model`, called through `forward`, which takes the tensors of a call and returns those of the result.

    For a float64 program every floating dtype inside the model is raised to float64, so that casts lose nothing.
    """

    def __init__(
        self,
        program: Program,
        model: torch.nn.Module,
        forward: Callable[..., Sequence[Tensor]],
        example: Sequence[Tensor],
        values: Mapping[Key, Tensor],
    ) -> None:
        self._forward, self._example = forward, example
        self._raised = program.manifest.dtype == "float64"
        self._has_random_ops = bool(program.of_kind("random"))
        self._step = 0
        self._buffers = {buffer.name for buffer in program.results_of_kind("buffer")}
        self._model = model.double() if self._raised else model
        self.changed = {}
        tensors: dict[Key, Tensor] = {("parameter", name): tensor for name, tensor in model.named_parameters()}
        tensors |= {("buffer", name): tensor for name, tensor in model.named_buffers()}
        with torch.no_grad():
            for key, tensor in tensors.items():
                if key in values:
                    tensor.copy_(values[key])
        super().__init__({name: tensor for (kind, name), tensor in tensors.items() if kind == "parameter"})

    def forward(self, inputs: Mapping[int | None, Tensor]) -> list[Tensor]:
        """The outputs for inputs by index; an input that the program does not use keeps the example's value."""
        tensors = [inputs.get(index, example) for index, example in enumerate(self._example)]
        dropout = ProgramDropout(RngState(step=self._step)) if self._has_random_ops else nullcontext()
        self._step += 1
        if not self._raised:
            with dropout:
                outputs = self._forward(*tensors)
        else:
            with _float64(), dropout:
                outputs = self._forward(*(tensor.to(raised_dtype(tensor.dtype)) for tensor in tensors))
        buffers = dict(self._model.named_buffers())
        self.changed = {name: buffers[name].detach().clone() for name in self._buffers}
        return list(outputs)


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
