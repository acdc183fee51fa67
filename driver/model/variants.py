"""The key of a call, which is all that a program depends on; the program compiled for it, and how it is called."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...diagnostics import PlanWarning
from ...dsl.plan import Plan
from ...frontend.capture.call import BoundCall
from ...frontend.captured import CaptureError, Mode, OutputTree
from ...frontend.dynamic_sizes.dynamic_dims import CalledSize
from ...passes.base import Remark, RemarkKind
from ...runtime.processes.session import ProcessRank
from ...runtime.processes.world import join
from ...runtime.program.arguments import Json
from ...runtime.program.program import Program
from ...runtime.rank.autograd import Accumulation, run
from ...runtime.session import Session
from ...runtime.threads.session import RankThreads
from ..cache.store import ProgramStore
from ..compile.compile_program import compile_program
from ..compile.new_program import remark_json
from ..compile.request import NO_OBSERVER, Compiled, CompileRequest, Found, Observer, Options
from ..report.remarks import is_warning, remarks_of, warning_text
from .attribute_guards import ReadAttributes
from .distribution import check_same_inputs, global_shapes, is_first_process, move_to_stages, processes
from .module_tensors import ModuleTensors

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
    opaque: tuple[int, ...]
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
        return ", ".join(f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name))

    def without(self, sizes: Mapping[str, CalledSize]) -> Key:
        """What calls that differ in these sizes alone have in common."""
        places = {place for size in sizes.values() for place in size.places}
        inputs = tuple(
            (torch.Size([-1 if (index, dim) in places else n for dim, n in enumerate(shape)]), dtype)
            for index, (shape, dtype) in enumerate(self.inputs)
        )
        return replace(self, inputs=inputs)


def mode_of(held: ModuleTensors, call: BoundCall, plan: Plan) -> Mode:
    """What a call is for: training, where grad mode is on and something requires a gradient.

    A pipeline's forward runs the backward too, so that it is for training only while the model is in train mode.
    """
    wanted = any(parameter.requires_grad for parameter in held.parameters.values()) or any(call.differentiable)
    forward_only = plan.pipeline is not None and not held.training[0]
    return Mode.TRAIN if torch.is_grad_enabled() and wanted and not forward_only else Mode.INFER


def key_of(held: ModuleTensors, call: BoundCall, mode: Mode, *, delayed: bool = False) -> Key:
    """The key of a call in the state that the model and autocast are in."""
    trainable = tuple([parameter.requires_grad for parameter in held.parameters.values()])
    wanted = call.differentiable
    return Key(
        mode=mode,
        classes=held.classes,
        training=held.training,
        hooks=held.hooks,
        structure=call.structure,
        opaque=call.opaque,
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
    return tuple([(tensor.shape, tensor.dtype) for tensor in tensors])


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

    @property
    def losses(self) -> tuple[int, ...]:
        """The positions of the outputs that may be differentiated."""
        with_tangent = {tangent.index for tangent in self.program.of_kind("tangent")}
        outputs = self.program.results_of_kind("output")
        return tuple(position for position, output in enumerate(outputs) if output.index in with_tangent)

    def result(self, outputs: Sequence[Tensor], call: BoundCall) -> Any:
        """What the model returns for the call, around its tensors."""
        tensors = [o.detach() if i in self.constant else o for i, o in enumerate(outputs)]
        return self.tree.rebuild(tensors, call.values())

    def call(
        self, held: ModuleTensors, tensors: Sequence[Tensor], accumulation: Accumulation, scale: float = 1.0
    ) -> list[Tensor]:
        """The tensors of the model's result; new values of buffers are written into the model's. `scale`: see `run`."""
        program = self.program
        changing = {buffer.name for buffer in program.results_of_kind("buffer")}
        parameters = [held.parameters[parameter.name] for parameter in program.of_kind("parameter")]
        # A backward may need the old value, so that the program gets a copy of what is written to below.
        buffers = [
            held.buffers[buffer.name].clone() if buffer.name in changing else held.buffers[buffer.name]
            for buffer in program.of_kind("buffer")
        ]
        states = [held.buffers[state.name] for state in program.of_kind("state")]
        inputs = [tensors[argument.index] for argument in program.of_kind("input") if argument.index is not None]
        # Inference mode is known to the caller's thread alone, and other ranks may not write to tensors made in it.
        grad_mode = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(grad_mode):
            outputs, changed = run(self.session, parameters, buffers, inputs, accumulation, states=states, scale=scale)
        with torch.no_grad():
            for name, value in changed.items():
                held.buffers[name].copy_(value)
        return outputs

    def refusal(self, sizes: Mapping[str, int]) -> str:
        """Why its program does not hold for these sizes; empty where it does."""
        symbolic = self.program.symbolic
        return "it has no named sizes" if symbolic is None else symbolic.refusal(sizes)

    def bound(self, held: ModuleTensors, call: BoundCall, sizes: Mapping[str, int]) -> Variant | None:
        """The same for other sizes of a call, where its program holds for them."""
        if self.refusal(sizes):
            return None
        return replace(self, session=_session(self.program.bind(sizes), held, call, self.session))

    def on_other_ranks(self) -> Variant:
        """The same program on rank threads of its own, for a model that is a copy of this one's."""
        return replace(self, session=RankThreads(self.program), read=_OfCopies())


class _OfCopies(ReadAttributes):
    """The attributes of a copy that nobody has written to."""

    def __init__(self) -> None:
        pass

    def are_unchanged(self, modules: Sequence[nn.Module]) -> bool:
        """See `ReadAttributes.are_unchanged`."""
        return True


@dataclass(frozen=True)
class Origin:
    """What there was before a program is made."""

    again: str = ""
    """Why it is made though the model has others; empty for its first. Becomes a remark."""
    beside: Session | None = None
    """A session of another program of the model, whose threads run this one too."""


@dataclass(frozen=True)
class Made:
    """A new variant, and how its program was found."""

    variant: Variant
    sizes: Found | None
    is_cached: bool


def make_variant(
    model: nn.Module,
    held: ModuleTensors,
    call: BoundCall,
    key: Key,
    plan: Plan,
    sizes: Mapping[str, CalledSize],
    padded: tuple[str, ...],
    origin: Origin = Origin(),
    observer: Observer = NO_OBSERVER,
    states: tuple[str, ...] = (),
) -> Made:
    """Compile one call of the model for the ranks that are there: the processes of this run, else threads.

    The program has dynamic sizes by name, or a remark says why not. Inputs that are `padded` need not divide by their
    ranks. Raises what capture and passes raise, and RunError E0352, E0353 or StrettoError E0603 where processes
    disagree.
    """
    options = Options(
        mode=key.mode, keep_weights=False, padded_inputs=padded, states=states, delay_reductions=key.delayed
    )
    with global_shapes(model, call) as plain:
        sharing = join().sharing if processes() > 1 else None
        request = CompileRequest(model, plain, plan, options, sizes, cache=ProgramStore.of_user(), sharing=sharing)
        compiled = _compiled(request, observer)
    program, found = compiled.program, compiled.sizes
    _warn(program)
    program = replace(program, remarks=[*_listed(program.remarks), *_compilation_remarks(found, origin.again)])
    result = compiled.result
    read = ReadAttributes(model, held.modules, result.reads)
    observer.stage("start")
    session = _session(program, held, call, origin.beside)
    return Made(Variant(session, result.output_tree, read, frozenset(result.constant)), found, compiled.is_cached)


def _compiled(request: CompileRequest, observer: Observer) -> Compiled:
    """The program; as in eager mode, a result without a gradient is no error before somebody asks for one."""
    try:
        return compile_program(request, observer)
    except CaptureError as error:
        if error.code != "E0215":
            raise
    options = replace(request.options, mode=Mode.INFER, delay_reductions=False)
    return compile_program(replace(request, options=options), observer)


def _warn(program: Program) -> None:
    """Say once, whatever the number of processes, what in the plan has no effect."""
    if is_first_process():
        for remark in filter(is_warning, remarks_of(program)):
            warnings.warn(warning_text(remark), PlanWarning, stacklevel=2)


def _compilation_remarks(found: Found | None, again: str) -> list[Json]:
    """The remarks that say why sizes are compiled one by one, and why this call is not the first one's program."""
    remarks = []
    if found is not None and found.symbolic is None:
        message = f"every size is compiled for itself, because {found.why_not}"
        remarks.append(Remark("dynamic-sizes", RemarkKind.MISSED, message))
    if again:
        remarks.append(Remark("dynamic-sizes", RemarkKind.NOTE, f"compiled again, because {again}"))
    return [remark_json(remark) for remark in remarks]


def _listed(remarks: Json) -> Sequence[Json]:
    return remarks if isinstance(remarks, list | tuple) else ()


def _session(program: Program, held: ModuleTensors, call: BoundCall, beside: Session | None) -> Session:
    """The ranks that are there, with a program; `call` is its first. Threads are those of the session `beside`."""
    if processes() == 1:
        return RankThreads(program, beside=beside if isinstance(beside, RankThreads) else None)
    move_to_stages(program, held.parameters)
    session = ProcessRank(program)
    check_same_inputs(call, session.world)
    return session
