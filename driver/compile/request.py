"""The request that a program is compiled from, the result, and the callbacks in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import nn

from ...dsl.plan import Plan
from ...frontend.capture.call import BoundCall, bind_call
from ...frontend.captured import Capture, ForwardResult, Mode
from ...frontend.dynamic_sizes.dynamic_dims import CalledSize
from ...frontend.to_ir import Floats
from ...ir.equivalence.integer_ranges import IntegerRange
from ...ir.module import Module
from ...passes.manager import PassRun
from ...runtime.processes.sharing import Sharing
from ...runtime.program.arguments import Json
from ...runtime.program.named_sizes import Symbolic
from ...runtime.program.program import Program
from ..cache.store import ProgramStore

CAPTURED = "captured"
"""The name that `Observer.module` gets before the first pass, in place of a pass's."""


@dataclass(frozen=True)
class Options:
    """How to compile, beside the model and the plan."""

    mode: Mode = Mode.TRAIN
    loss_only: bool = False
    """Keep of the forward's result the loss alone."""
    floats: Floats = Floats.AS_CAPTURED
    arguments: Mapping[str, Json] = field(default_factory=dict)
    """What checks need to know of the inputs: {"inputs": {name: {"high": vocabulary}}}."""
    source: Mapping[str, Json] = field(default_factory=dict)
    """Where the model came from, for the manifest."""
    keep_weights: bool = True
    """Store the model's present parameters and buffers in the program."""
    padded_inputs: tuple[str, ...] = ()
    """Inputs that need not divide by their ranks: those with dynamic dims."""
    states: tuple[str, ...] = ()
    """Globs over the buffers that are states: they stay with the ranks and change in place."""
    states_elsewhere: bool = False
    """Whether a glob may name no buffer of this call, because it names one of another entry."""
    sizes_vary: bool = False
    """Whether the program is to hold for other sizes than the call's: no pass may choose by bytes then."""
    target: str = "cpu"
    """What the program is for, "cpu" or "cuda": whether regions are fused."""
    delay_reductions: bool = False
    """Leave the parameters' gradients unreduced, for steps that accumulate before they reduce."""


class IfStatic(StrEnum):
    """What to do when named sizes are requested, and a program is valid for the call's own sizes only."""

    COMPILE = "compile for the sizes of the call"
    REFUSE = "refuse (E0422)"


@dataclass(frozen=True)
class CompileRequest:
    """All that a program is compiled from: one call of a model, a plan, and options."""

    model: nn.Module
    call: BoundCall
    plan: Plan
    options: Options = Options()
    sizes: Mapping[str, CalledSize] = field(default_factory=dict)
    """The call's sizes that become named sizes of the program."""
    if_static: IfStatic = IfStatic.COMPILE
    """Of use with `sizes` only."""
    cache: ProgramStore | None = None
    """Where programs of earlier runs are looked up and this one is kept; None: compile in any case."""
    sharing: Sharing | None = None
    """The other processes of the run, for which one compiles; None: this process compiles for itself."""

    @staticmethod
    def of(
        model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], plan: Plan, options: Options = Options()
    ) -> CompileRequest:
        """For a call with these arguments. Errors: those of `bind_call`."""
        return CompileRequest(model, bind_call(model, args, kwargs), plan, options)


def _ignore(stage: str) -> None:
    """Observe nothing."""


@dataclass(frozen=True)
class Observer:
    """Callbacks of a running compile."""

    stage: Callable[[str], None] = _ignore
    """The name of each stage as it begins: capture, cache, backward, convert, passes, lower, sizes."""
    module: Callable[[str, Module], None] | None = None
    """The module as captured (`CAPTURED`), and as each pass leaves it, with the pass's name."""


NO_OBSERVER = Observer()


@dataclass(frozen=True)
class Found:
    """The named sizes of a program; or why it holds for the sizes of its call alone."""

    symbolic: Symbolic | None
    why_not: str = ""
    compilations: int = 1
    program: Program | None = None
    """The program whose numbers `symbolic` gives, with a table of types that holds for all sizes."""


@dataclass(frozen=True)
class Compiled:
    """A program and how it came to be."""

    program: Program
    result: ForwardResult
    ranges: Mapping[str, IntegerRange]
    """By integer input, the range that the graph gives it."""
    capture: Capture | None
    """None where the program was in the cache, as `runs` is empty then."""
    runs: tuple[PassRun, ...]
    sizes: Found | None = None
    """None where no named sizes were asked for."""
    is_cached: bool = False
    """Whether the program was in the cache."""
    decided: Plan | None = None
    """The plan with each `move auto` decided; None for a program from the cache."""

    @property
    def own_capture(self) -> Capture:
        """The capture of a program that was compiled now."""
        assert self.capture is not None, "the program was compiled, as no cache was asked"
        return self.capture
