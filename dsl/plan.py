"""A plan: the mesh and the statements, with the checks that need no model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..diagnostics import Span
from ..diagnostics.bounded_files import read_file
from .attention import Attention, check_attention
from .axes import NamedAxes, check_names, with_axes_of_mesh
from .communication.overlap import Overlap, check_overlap
from .error import PlanCode, PlanError
from .memory.checks import check_memory
from .memory.nanobatches import Nanobatches
from .memory.recompute import Recompute
from .memory.split import Split
from .mesh import Mesh
from .parser import Statement, parse_statements
from .pipeline import MICROBATCH_AXIS, Pipeline
from .precision import FloatFormat, Precision
from .routing.experts import Experts
from .schedule import WrittenSchedule
from .shard import Dim, Role, ShardActivations, ShardBuffers, Sharding, ShardInputs, ShardParameters, StoreParameters
from .source import Places, Source
from .spelling import did_you_mean, listed, similar_path
from .zero import Zero, check_common_items, check_within

_OVER_AXES = Sharding | Zero | Attention | Experts
"""Statements that take names of several axes."""
_DATA = "dp"
"""The name of axes that shard the batch of the inputs unless a statement says otherwise."""


@dataclass(frozen=True)
class Plan:
    """A plan file. Two plans are equal if their statements are; source spans do not count.

    In `shard`, `store`, `zero` and `attention`, names of several axes are replaced by these axes.

    Raises PlanError for an axis that the mesh lacks (E0107) and for one used twice on one tensor (E0112), for a second
    precision (E0122), a second pipeline (E0125) and a second schedule of one name (E0127), and for another use of the
    pipeline axis or of the name of the microbatch axis (E0126).

    >>> print(Plan.parse('mesh (dp=2,tp=2)  # four ranks'))
    mesh (dp=2, tp=2)
    """

    mesh: Mesh
    statements: tuple[Statement, ...] = ()
    """All statements but the mesh, in order."""
    file: str = field(default="<plan>", compare=False)
    text: str = field(default="", compare=False, repr=False)
    used_names: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    """The names of several axes that statements were written with."""

    def __post_init__(self) -> None:
        check_names(self.named_axes, self.mesh)
        axes_by_name = {statement.name: statement.axes for statement in self.named_axes}
        named = [a for s in self.statements if isinstance(s, _OVER_AXES) for a in (*s.axes, *_inner_axes(s))]
        used = {axis for axis in named if axis in axes_by_name}
        object.__setattr__(self, "used_names", self.used_names | used)
        replaced = (with_axes_of_mesh(s, axes_by_name) if isinstance(s, _OVER_AXES) else s for s in self.statements)
        object.__setattr__(self, "statements", tuple(replaced))
        for statement in self.statements:
            if isinstance(statement, _OVER_AXES | Pipeline):
                self._check_axes_exist(statement)
        _check_axes_once(self.inputs)
        _check_axes_once(self.activations)
        self._check_activations_beside_inputs()
        self._check_zero_axes()
        check_attention(self.attention, self.inputs, self.mesh.names)
        check_common_items([s for s in self.statements if isinstance(s, Zero)])
        _check_at_most_one([s for s in self.statements if isinstance(s, Precision)], PlanCode.DUPLICATE_PRECISION)
        _check_at_most_one([s for s in self.statements if isinstance(s, Pipeline)], PlanCode.DUPLICATE_PIPELINE)
        _check_schedule_names(self.schedules)
        check_memory(self.statements, self.pipeline)
        check_overlap(self.statements, self.mesh.names)
        if self.pipeline is not None:
            self._check_pipeline_axis(self.pipeline)

    @staticmethod
    def parse(text: str, file: str = "<plan>") -> Plan:
        """Parse a plan; `file` is its name in messages. Raises PlanError at the first mistake."""
        parsed = parse_statements(source := Source(file, text))
        meshes = [statement for statement in parsed if isinstance(statement, Mesh)]
        statements = tuple(statement for statement in parsed if not isinstance(statement, Mesh))
        return Plan(_only_mesh(meshes, source), statements, file, text)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a UTF-8 file. Raises PlanError if it cannot be read (E0118, E0119) or parsed."""
        file = os.fspath(path)
        try:
            content = read_file(file)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            message = f'cannot read the plan "{file}": {why}'
            raise PlanError(PlanCode.NOT_FOUND, message, help=similar_path(file, ".plan")) from None
        try:
            return Plan.parse(content.decode("utf-8-sig"), file)
        except UnicodeDecodeError as error:
            message = f'the plan "{file}" is not UTF-8 text (byte {error.start})'
            raise PlanError(PlanCode.NOT_TEXT, message) from None

    def __str__(self) -> str:
        return "\n".join(str(line) for line in (self.mesh, *self.statements))

    @property
    def named_axes(self) -> tuple[NamedAxes, ...]:
        """The statements that give several axes a name, in order."""
        return tuple(statement for statement in self.statements if isinstance(statement, NamedAxes))

    @property
    def parameters(self) -> tuple[ShardParameters, ...]:
        """The statements that shard parameters, in order."""
        return tuple(statement for statement in self.statements if isinstance(statement, ShardParameters))

    @property
    def stored(self) -> tuple[StoreParameters | Zero, ...]:
        """The statements that shard the stored placement of parameters, in order."""
        return tuple(statement for statement in self.statements if isinstance(statement, StoreParameters | Zero))

    @property
    def experts(self) -> tuple[Experts, ...]:
        """The statements that cut experts, in order."""
        return tuple(statement for statement in self.statements if isinstance(statement, Experts))

    @property
    def prefetch(self) -> int:
        """How many layers ahead a stored parameter is gathered: as `zero` says, else 1."""
        return next((statement.prefetch for statement in self.stored if isinstance(statement, Zero)), 1)

    @property
    def attention(self) -> tuple[Attention, ...]:
        """The statements about attention over cut tokens, in order."""
        return tuple(statement for statement in self.statements if isinstance(statement, Attention))

    @property
    def bucket(self) -> int:
        """How many bytes of stored parameters, or of their gradients, one collective moves at most; 0: one tensor."""
        return next((statement.bucket for statement in self.stored if isinstance(statement, Zero)), 0)

    @property
    def stored_reduce(self) -> FloatFormat | None:
        """The format in which gradients of stored parameters are reduced; None: that of all gradients."""
        return next((statement.reduce for statement in self.stored if isinstance(statement, Zero)), None)

    @property
    def recomputed(self) -> tuple[Recompute, ...]:
        """The statements about what the backward computes again, in order."""
        return tuple(statement for statement in self.statements if isinstance(statement, Recompute))

    @property
    def split(self) -> Split | None:
        """The statement about the chunks of the loss, if any."""
        return next((statement for statement in self.statements if isinstance(statement, Split)), None)

    @property
    def overlap(self) -> Overlap:
        """The statement about communication beside other work; without one, level 1."""
        return next((statement for statement in self.statements if isinstance(statement, Overlap)), Overlap())

    @property
    def nanobatches(self) -> Nanobatches | None:
        """The statement about nanobatches, if any."""
        return next((statement for statement in self.statements if isinstance(statement, Nanobatches)), None)

    @property
    def memory(self) -> int | None:
        """The bytes that a rank may need, as `recompute auto` says; None: not said."""
        return min((each.memory for each in self.recomputed if each.memory is not None), default=None)

    @property
    def activations(self) -> tuple[ShardActivations, ...]:
        """The statements that shard the residual stream, in order."""
        return tuple(statement for statement in self.statements if isinstance(statement, ShardActivations))

    @property
    def buffers(self) -> tuple[ShardBuffers, ...]:
        """The statements about buffers."""
        return tuple(statement for statement in self.statements if isinstance(statement, ShardBuffers))

    @property
    def inputs(self) -> tuple[ShardInputs, ...]:
        """The statements that shard inputs, in order; first the implied one."""
        written = tuple(statement for statement in self.statements if isinstance(statement, ShardInputs))
        return written if self.implied is None else (self.implied, *written)

    @property
    def implied(self) -> ShardInputs | None:
        """`shard inputs batch over dp`, where there are axes of this name and no statement shards inputs over them."""
        axes: tuple[str, ...] = (_DATA,) if _DATA in self.mesh.names else ()
        span = self.mesh.span_of(_DATA) if axes else None
        for named in self.named_axes:
            axes, span = (named.axes, named.places.layout) if named.name == _DATA else (axes, span)
        written = (axis for s in self.statements if isinstance(s, ShardInputs) for axis in s.axes)
        return ShardInputs(Role.BATCH, axes, Places(span)) if axes and {*axes}.isdisjoint(written) else None

    @property
    def data_axes(self) -> tuple[str, ...]:
        """The axes that shard the batch of the inputs, in mesh order."""
        statements = [statement for statement in self.inputs if statement.layout in (Role.BATCH, Dim(0))]
        return tuple(axis for axis in self.mesh.names if any(axis in statement.axes for statement in statements))

    @property
    def precision(self) -> Precision | None:
        """The precision statement, if any."""
        return next((statement for statement in self.statements if isinstance(statement, Precision)), None)

    @property
    def pipeline(self) -> Pipeline | None:
        """The pipeline statement, if any."""
        return next((statement for statement in self.statements if isinstance(statement, Pipeline)), None)

    @property
    def schedules(self) -> tuple[WrittenSchedule, ...]:
        """The written schedules, in order."""
        return tuple(statement for statement in self.statements if isinstance(statement, WrittenSchedule))

    def _check_axes_exist(self, statement: Sharding | Zero | Attention | Experts | Pipeline) -> None:
        named = {each.name: each.axes for each in self.named_axes}
        for index, axis in enumerate(statement.axes):
            if axis not in self.mesh.names:
                several = f': "{axis}" names {", ".join(named[axis])}' if axis in named else ""
                known = self.mesh.names if isinstance(statement, Pipeline) else (*self.mesh.names, *named)
                raise PlanError(
                    PlanCode.UNKNOWN_AXIS,
                    f'the mesh has no axis "{axis}"{several}',
                    span=statement.places.axis(index),
                    expected=f"expected {listed(known)}",
                    notes=(("the mesh is declared here", self.mesh.span),),
                    help=did_you_mean(axis, known),
                )

    def _check_activations_beside_inputs(self) -> None:
        """The residual stream keeps the inputs' batch sharding, so an axis of it cannot shard another dim."""
        for statement in self.activations:
            for index, axis in enumerate(statement.axes):
                if axis in self.data_axes and statement.layout not in (Dim(0), Dim(-3)):
                    raise PlanError(
                        PlanCode.AXIS_USED_TWICE,
                        f'the axis "{axis}" is used twice on the activations: for the batch and for {statement.layout}',
                        span=statement.places.axis(index),
                        notes=(self._batch_note(axis),),
                        help="shard the activations over another axis",
                    )

    def _check_zero_axes(self) -> None:
        """What ranks of an axis hold in common can be cut over it: they share a model, and have different inputs."""
        cut = {axis for statement in self.inputs for axis in statement.axes}
        for statement in (s for s in self.statements if isinstance(s, Zero)):
            check_within(statement)
            for index, axis in enumerate(statement.axes):
                if axis not in cut and (self.pipeline is None or axis != self.pipeline.axis):
                    raise PlanError(
                        PlanCode.BAD_ZERO,
                        f'no input is cut over "{axis}", so its ranks have no gradients of their own to scatter',
                        span=statement.places.axis(index),
                        expected=f"expected {listed([a for a in self.mesh.names if a in cut] or ['a data axis'])}",
                        help=f"add shard inputs batch over {axis}, or store parameters over it with store",
                    )

    def _check_pipeline_axis(self, pipeline: Pipeline) -> None:
        """The pipeline axis may shard only vocabularies, and no mesh axis may be called as the microbatch axis."""
        if MICROBATCH_AXIS in self.mesh.names:
            raise PlanError(
                PlanCode.PIPELINE_AXIS,
                f'the mesh has an axis "{MICROBATCH_AXIS}", which is the name of the microbatch axis of a pipeline',
                span=self.mesh.span_of(MICROBATCH_AXIS),
                notes=(("the pipeline is here", pipeline.span),),
                help="give the axis another name",
            )
        axis = pipeline.axis
        of_parameters = (*self.parameters, *self.experts, *self.stored)
        for statement in (*of_parameters, *self.activations, *self.inputs, *self.buffers):
            is_vocab = isinstance(statement, Sharding) and statement.layout is Role.VOCAB
            if axis in statement.axes and not is_vocab:
                other_use = f"{statement.subject} are sharded over it"
                if statement not in self.statements:
                    other_use = f'an axis named "{_DATA}" shards the batch of the inputs'
                raise PlanError(
                    PlanCode.PIPELINE_AXIS,
                    f'the axis "{axis}" is the pipeline axis, but {other_use}',
                    span=statement.places.axis(statement.axes.index(axis)),
                    notes=(("it is made the pipeline axis here", pipeline.places.axis(0)),),
                    help="shard over another axis; the pipeline axis may shard only vocab",
                )

    def _batch_note(self, axis: str) -> tuple[str, Span | None]:
        """The note that tells why `axis` shards the batch."""
        for statement in self.statements:
            if isinstance(statement, ShardInputs) and axis in statement.axes:
                return "it shards the batch of the inputs here", statement.places.axis(statement.axes.index(axis))
        return f'an axis named "{_DATA}" shards the batch of the inputs', self.mesh.span_of(axis)


def _inner_axes(statement: Sharding | Zero | Attention | Experts) -> tuple[str, ...]:
    """The axes that `zero` names a second time."""
    return statement.within if isinstance(statement, Zero) else ()


def _check_axes_once(statements: Sequence[ShardActivations | ShardInputs]) -> None:
    """An axis shards at most one dim of a tensor, so statements about the same tensors name it once.

    Of statements that name inputs, the last that matches decides.
    """
    places: dict[str, Span | None] = {}
    for statement in statements:
        if isinstance(statement, ShardInputs) and statement.patterns:
            continue
        for index, axis in enumerate(statement.axes):
            span = statement.places.axis(index)
            if axis in places:
                raise PlanError(
                    PlanCode.AXIS_USED_TWICE,
                    f'the axis "{axis}" is used twice on the {statement.subject}',
                    span=span,
                    notes=(("first used here", places[axis]),),
                    help="keep one of the two statements, or name another axis",
                )
            places[axis] = span


def _only_mesh(meshes: Sequence[Mesh], source: Source) -> Mesh:
    """The one mesh of a plan. Raises PlanError where there is none (E0111) or a second (E0110)."""
    if not meshes:
        help = "add a line such as: mesh (dp=2, tp=2)"
        raise PlanError(PlanCode.NO_MESH, "the plan declares no mesh", span=source.span(1, 1, 1), help=help)
    if len(meshes) > 1:
        raise PlanError(
            PlanCode.DUPLICATE_MESH,
            "the plan declares a second mesh",
            span=meshes[1].span,
            notes=(("the first is here", meshes[0].span),),
            help="keep one of them",
        )
    return meshes[0]


_SECOND = {
    PlanCode.DUPLICATE_PRECISION: ("precision statement", "merge the two statements"),
    PlanCode.DUPLICATE_PIPELINE: ("pipeline statement", "keep one of them"),
}
"""By code, the kind of statement that a plan has at most once, and the way out of a second one."""


def _check_at_most_one(statements: Sequence[Precision] | Sequence[Pipeline], code: PlanCode) -> None:
    if len(statements) > 1:
        kind, help = _SECOND[code]
        notes = (("the first is here", statements[0].span),)
        raise PlanError(code, f"the plan has a second {kind}", span=statements[1].span, notes=notes, help=help)


def _check_schedule_names(schedules: Sequence[WrittenSchedule]) -> None:
    """Raises PlanError E0127 for two schedules of one name."""
    first: dict[str, WrittenSchedule] = {}
    for schedule in schedules:
        if schedule.name in first:
            raise PlanError(
                PlanCode.DUPLICATE_SCHEDULE,
                f'the plan has two schedules named "{schedule.name}"',
                span=schedule.span,
                notes=(("the first is here", first[schedule.name].span),),
                help="give one of them another name",
            )
        first[schedule.name] = schedule


def check_world(plan: Plan, processes: int) -> None:
    """Raises PlanError E0120 unless there are as many processes as ranks on the mesh."""
    if processes != plan.mesh.size:
        axes = str(plan.mesh).removeprefix("mesh ")
        ranks, were = _count(plan.mesh.size, "rank"), "was" if processes == 1 else "were"
        raise PlanError(
            PlanCode.WORLD_SIZE,
            f"the mesh {axes} has {ranks}, but {_count(processes, 'process', 'es')} {were} started",
            span=plan.mesh.span,
            help=f"start {_count(plan.mesh.size, 'process', 'es')}, or change the mesh",
        )


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else plural}"
