"""What a program is asked for with, what it comes back as, and what its caller is told on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import nn

from ...dsl.plan import Plan
from ...frontend.capture.call import BoundCall, bind_call
from ...frontend.captured import Capture, Mode
from ...frontend.dynamic_sizes.dynamic_dims import CalledSize
from ...frontend.to_ir import Floats
from ...ir.module import Module
from ...passes.manager import PassRun
from ...runtime.program.arguments import Json
from ...runtime.program.named_sizes import Symbolic
from ...runtime.program.program import Program

CAPTURED = "captured"
"""What `Watch.module` is told before the first pass, in place of a pass's name."""


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
    delay_reductions: bool = False
    """Leave the parameters' gradients unreduced, for steps that accumulate before they reduce."""


class OneSize(StrEnum):
    """What becomes of a request for named sizes where a program holds for the sizes of its call alone."""

    COMPILE = "compile for the sizes of the call"
    REFUSE = "refuse (E0422)"


@dataclass(frozen=True)
class CompileRequest:
    """One call of a model under a plan, for which a program is wanted."""

    model: nn.Module
    call: BoundCall
    plan: Plan
    options: Options = Options()
    sizes: Mapping[str, CalledSize] = field(default_factory=dict)
    """Sizes of the call that the program is to hold as names, for calls of other sizes."""
    one_size: OneSize = OneSize.COMPILE

    @staticmethod
    def of(
        model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], plan: Plan, options: Options = Options()
    ) -> CompileRequest:
        """For a call with these arguments. Errors: those of `bind_call`."""
        return CompileRequest(model, bind_call(model, args, kwargs), plan, options)


def _nothing(name: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Watch:
    """What is told of a compile while it runs."""

    stage: Callable[[str], None] = _nothing
    """The name of each stage as it begins: capture, convert, passes, lower, sizes."""
    module: Callable[[str, Module], None] | None = None
    """The module as captured (`CAPTURED`), and as each pass leaves it, with the pass's name."""


SILENT = Watch()
"""Nobody is told anything."""


@dataclass(frozen=True)
class Found:
    """The named sizes of a program; or why it holds for the sizes of its call alone."""

    symbolic: Symbolic | None
    why_not: str = ""
    compilations: int = 1


@dataclass(frozen=True)
class Compiled:
    """A program and how it came to be."""

    program: Program
    capture: Capture
    runs: tuple[PassRun, ...]
    sizes: Found | None = None
    """None where no named sizes were asked for."""
