"""Eager PyTorch as the reference of a check: the uncompiled model of a target that the caller names.

It is called as the user calls it, before any rewriting of capture, and draws the random numbers of the program. So it
finds mistakes of capture, which the reference inside the program shares. A program names its model's source, too, but
nothing is loaded because a program names it: that would run whatever the author of a folder wrote.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...diagnostics import StrettoError
from ...runtime.checks.model_and_program import Key, SingleDevice, rng_state_on_one_device
from ...runtime.checks.program_check import Expected
from ...runtime.processes.jobs import check_process
from ...runtime.program.arguments import DTYPES, Json
from ...runtime.program.program import Program
from ...runtime.program.reference_records import Reference
from ...runtime.reading.json_fields import Fields
from ..compile.model_source import file_hash, source_file
from .eager_model import EagerModel
from .users_call import UsersCall

_CHANGED = "file is not the one that the program was compiled from"


@dataclass(frozen=True)
class Comparison:
    """The reference that a program is checked against."""

    expected: Expected
    live: bool
    """Whether it is the uncompiled model; else it is the exported forward in the program."""
    why: str
    """For a person: what the reference is."""
    model: nn.Module | None = None
    """The uncompiled model, if there is one."""


def comparison_for(program: Program, against: str = "") -> Comparison:
    """The uncompiled model of the target `against`; without one, the program's own reference.

    Raises StrettoError, among them E0348 where the target has no weights, and ImportError without the compiler.
    """
    if not against:
        return Comparison(SingleDevice, False, f"the exported forward in the program{_known_of_capture(program)}")
    changed = f", whose {_CHANGED}" if _is_changed(program, against) else ""
    expected, model = _live(program, against)
    return Comparison(expected, True, f"eager PyTorch: the uncompiled model {against}{changed}", model)


def check_entry(arguments: Json) -> Json:
    """One process of `stretto run --ranks processes --check`."""
    against = Fields(arguments, "arguments").string_or("against", "")
    return check_process(arguments, lambda program: comparison_for(program, against).expected)


def _known_of_capture(program: Program) -> str:
    """What the manifest says of an earlier check with eager PyTorch, and how to make one."""
    if program.manifest.checked.get("result") == "passed":
        return " (which eager PyTorch agreed with when it was compiled)"
    return " (never compared with eager PyTorch: name the model with --against TARGET)"


def _is_changed(program: Program, against: str) -> bool:
    """Whether the target's file is not the one that the program was compiled from."""
    recorded = program.manifest.source.get("sha256")
    scheme, _, config = against.partition(":")
    path = config if scheme == "hf" else against.rpartition(":")[0]
    file = source_file("hf" if scheme == "hf" else "file", path)
    return recorded is not None and os.path.isfile(file) and file_hash(file) != recorded


def eager_expected(program: Program, target_name: str) -> Expected:
    """Load a target as the program was compiled from one; the maker of the check's reference.

    Only options come from the program: dtype, batch and sequence. Raises StrettoError E0348 where the target has no
    weights, E0667 where it is in another mode than the program's, and those of loading; ImportError without the
    compiler.
    """
    return _live(program, target_name)[0]


def _live(program: Program, target_name: str) -> tuple[Expected, nn.Module]:
    """See `eager_expected`; also the target's model."""
    from ...frontend.captured import Mode
    from ...frontend.targets.load_target import load_target
    from ...frontend.targets.target import Request
    from ..readings.hugging_face_config import rows_of_config
    from .first_weights import weight_rows
    from .second_load import load_again, refuse_other_modes, rows_of_loading, rows_of_states
    from .weight_files import rows_of_files

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
    again = load_again(target_name, request)
    refuse_other_modes(target_name, target, request, again)
    changed = f"the target's {_CHANGED}" if _is_changed(program, target_name) else ""
    call = UsersCall(target.inputs, mode is Mode.TRAIN, compute)
    found = [
        *weight_rows(program, target.model, call, None if again is None else again.model, changed),
        *rows_of_files(target_name, target.model),
        *rows_of_config(target_name, target.model, str(options.get("dtype") or "")),
        *rows_of_loading(target, request, again), *rows_of_states(program),
    ]  # fmt: skip

    def make(program: Program, reference: Reference, values: Mapping[Key, Tensor]) -> EagerModel:
        return EagerModel(
            target.model,
            call,
            {argument.index: argument.name for argument in reference.inputs if argument.kind == "input"},
            values,
            {each.name for kind in ("buffer", "state") for each in program.results_of_kind(kind)},
            found=found,
            ir=program.ir,
            raised=program.manifest.dtype == "float64",
            state_of=partial(rng_state_on_one_device, program),
        )

    return make, target.model
