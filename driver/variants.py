"""One program among those of a compiled model: for which calls it is, how it is made, how it is called."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..diagnostics import PlanWarning
from ..dsl.plan import Plan
from ..frontend.call import BoundCall
from ..frontend.capture import capture_call
from ..frontend.captured import CaptureError, Mode, OutputTree
from ..frontend.dynamic_dims import CalledSize
from ..frontend.precision import check_parameters, compute_dtype
from ..frontend.size_guards import size_guards
from ..passes.base import Remark, RemarkKind
from ..runtime.arguments import Json
from ..runtime.autograd import Accumulation, run
from ..runtime.interface import Session
from ..runtime.process_session import ProcessRank
from ..runtime.program import Program
from ..runtime.session import RankThreads
from .compile_program import Compiled, Options, compile_capture, remark_json
from .distribution import check_same_inputs, global_shapes, processes
from .dynamic_sizes import Found, find_sizes
from .held import Held
from .read_attributes import ReadAttributes
from .remarks import is_warning, remarks_of, warning_text

TensorKind = tuple[torch.Size, torch.dtype]
"""Global shape and dtype."""


@dataclass(frozen=True)
class Key:
    """What a captured graph depends on beside the attributes that were read (`ReadAttributes`)."""

    mode: Mode
    classes: tuple[type[nn.Module], ...]
    training: tuple[bool, ...]
    hooks: tuple[int, ...]
    structure: tuple[str, str]
    inputs: tuple[TensorKind, ...]
    parameters: tuple[TensorKind, ...]
    buffers: tuple[TensorKind, ...]
    ties: tuple[int, ...]
    trainable: tuple[bool, ...]
    """Which parameters require a gradient; empty for inference, which does not ask."""
    differentiable: tuple[bool, ...]
    """Which inputs want a gradient; empty where none does, and for inference."""
    autocast: torch.dtype | None
    default_dtype: torch.dtype
    delayed: bool
    """Whether gradients wait for a reduction, as in `no_sync`."""

    def differs_in(self, other: Key) -> str:
        """The names of what differs, for a log."""
        return ", ".join(each.name for each in fields(self) if getattr(self, each.name) != getattr(other, each.name))

    def without(self, sizes: Mapping[str, CalledSize]) -> Key:
        """What calls that differ in these sizes alone have in common."""
        places = {place for each in sizes.values() for place in each.places}
        inputs = tuple(
            (torch.Size([-1 if (at, dim) in places else n for dim, n in enumerate(shape)]), dtype)
            for at, (shape, dtype) in enumerate(self.inputs)
        )
        return replace(self, inputs=inputs)


def key_of(held: Held, call: BoundCall, *, delayed: bool = False) -> Key:
    """The key of a call in the state that the model, grad mode and autocast are in."""
    trainable = tuple([each.requires_grad for each in held.parameters.values()])
    wanted = call.differentiable
    mode = Mode.TRAIN if torch.is_grad_enabled() and (any(trainable) or any(wanted)) else Mode.INFER
    return Key(
        mode=mode,
        classes=held.classes,
        training=held.training,
        hooks=held.hooks,
        structure=call.structure,
        inputs=_kinds(call.tensors),
        parameters=_kinds(held.parameters.values()),
        buffers=_kinds(held.buffers.values()),
        ties=held.ties,
        trainable=trainable if mode is Mode.TRAIN else (),
        differentiable=wanted if mode is Mode.TRAIN and any(wanted) else (),
        autocast=torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
        default_dtype=torch.get_default_dtype(),
        delayed=delayed and mode is Mode.TRAIN,
    )


def _kinds(tensors: Iterable[Tensor]) -> tuple[TensorKind, ...]:
    return tuple([(each.shape, each.dtype) for each in tensors])


@dataclass(frozen=True, eq=False)
class Variant:
    """A program with the ranks that run it, and the structure of what the model returns."""

    session: Session
    tree: OutputTree
    read: ReadAttributes
    """It is for calls for which these hold."""
    constant: frozenset[int] = frozenset()
    """Indices of the outputs that require no gradient."""

    @property
    def program(self) -> Program:
        """What it runs."""
        return self.session.program

    def call(self, held: Held, tensors: Sequence[Tensor], accumulation: Accumulation) -> Any:
        """The model's result for the tensors of a call; new values of buffers are written into the model's."""
        program = self.program
        changing = {each.name for each in program.results_of_kind("buffer")}
        parameters = [held.parameters[each.name] for each in program.of_kind("parameter")]
        # A backward may need the old value, so that the program gets a copy of what is written to below.
        buffers = [
            held.buffers[each.name].clone() if each.name in changing else held.buffers[each.name]
            for each in program.of_kind("buffer")
        ]
        inputs = [tensors[each.index] for each in program.of_kind("input") if each.index is not None]
        # Inference mode is known to the caller's thread alone, and other ranks may not write to tensors made in it.
        grad_mode = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(grad_mode):
            outputs, changed = run(self.session, parameters, buffers, inputs, accumulation)
        with torch.no_grad():
            for name, value in changed.items():
                held.buffers[name].copy_(value)
        return self.tree.rebuild([o.detach() if at in self.constant else o for at, o in enumerate(outputs)])

    def bound(self, call: BoundCall, sizes: Mapping[str, int]) -> Variant | None:
        """The same for other sizes of a call, where its program holds for them."""
        symbolic = self.program.symbolic
        if symbolic is None or symbolic.refusal(sizes):
            return None
        return replace(self, session=_session(self.program.bind(sizes), call))


def make_variant(
    model: nn.Module,
    held: Held,
    call: BoundCall,
    key: Key,
    plan: Plan,
    sizes: Mapping[str, CalledSize],
    padded: tuple[str, ...],
) -> tuple[Variant, Found | None]:
    """Compile one call of the model for the ranks that are there: the processes of this run, else threads.

    Where some of its sizes are dynamic, the program has these by name, or it is said why not; inputs that are `padded`
    need not divide by their ranks. Raises what capture and passes raise, and RunError E0352, E0353 or
    StrettoError E0603 where processes disagree.
    """
    with global_shapes(model, call) as plain:
        compiled = _compiled(model, plain, key, plan, padded)
        program, found = compiled.program, None
        if sizes:
            guards = partial(size_guards, model, plain, sizes, mode=compiled.capture.mode, compute=compute_dtype(plan))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PlanWarning)
                found = find_sizes(
                    plain, sizes, guards, compiled, lambda other: _compiled(model, other, key, plan, padded)
                )
            program = replace(program, symbolic=found.symbolic, remarks=[*_listed(program.remarks), *_said(found)])
    captured = compiled.capture
    read = ReadAttributes(model, held.modules, captured.reads)
    return Variant(_session(program, call), captured.output_tree, read, frozenset(captured.constant)), found


def _said(found: Found) -> list[Json]:
    """The remark that says why sizes are compiled one by one."""
    if found.symbolic is not None:
        return []
    message = f"every size is compiled for itself, because {found.why_not}"
    return [remark_json(Remark("dynamic-sizes", RemarkKind.MISSED, message))]


def _listed(remarks: Json) -> Sequence[Json]:
    return remarks if isinstance(remarks, list | tuple) else ()


def _session(program: Program, call: BoundCall) -> Session:
    """The ranks that are there, with a program; `call` is its first."""
    if processes() == 1:
        return RankThreads(program)
    session = ProcessRank(program)
    check_same_inputs(call, session.world)
    return session


def _compiled(model: nn.Module, call: BoundCall, key: Key, plan: Plan, padded: tuple[str, ...]) -> Compiled:
    options = Options(mode=key.mode, keep_weights=False, delay_reductions=key.delayed, padded_inputs=padded)
    check_parameters(model, plan)
    compute = compute_dtype(plan)
    try:
        captured = capture_call(model, call, mode=key.mode, compute=compute)
    except CaptureError as error:
        if error.code != "E0215":
            raise
        # As in eager mode, a result without a gradient is no error before somebody asks for one.
        options = Options(mode=Mode.INFER, keep_weights=False, padded_inputs=padded)
        captured = capture_call(model, call, mode=Mode.INFER, compute=compute)
    with _neutral():
        compiled = compile_capture(captured, model, plan, options)
    if processes() == 1 or torch.distributed.get_rank() == 0:
        for each in filter(is_warning, remarks_of(compiled.program)):
            warnings.warn(warning_text(each), PlanWarning, stacklevel=2)
    return compiled


@contextmanager
def _neutral() -> Iterator[None]:
    """Passes compute with torch themselves: what the caller has switched on or off is not meant for them."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        yield
