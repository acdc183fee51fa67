"""`stretto doctor`."""

from __future__ import annotations

import argparse

from .arguments import add_json, positive
from .outcome import Outcome, require_compiler

HELP = "say what a model's parameters are called and what would stay whole, and propose a plan"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.add_argument("target", metavar="TARGET", help="a model, as for stretto compile")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the plan there")
    parser.add_argument("--mode", choices=("train", "infer"), default="train", help="default: train")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), help="default: the model's own")
    parser.add_argument("--batch", type=positive, metavar="B", help="examples in the global batch of an hf: target")
    parser.add_argument("--seq", type=positive, metavar="S", help="tokens per example of an hf: target")
    parser.add_argument("--dp", type=positive, default=2, metavar="N", help="ranks that share the batch; default: 2")
    parser.add_argument("--tp", type=positive, default=2, metavar="N", help="ranks that share the layers; default: 2")
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def run(given: argparse.Namespace) -> Outcome:
    """See `Command`."""
    if not given.target.startswith("hf:") and (given.batch or given.seq):
        given.usage_error("--batch and --seq are for hf: targets; a function in a file makes its own inputs")
    require_compiler()
    from ..doctor.diagnosis import DoctorJob, diagnose
    from ..doctor.show import show_diagnosis
    from ..text.text_files import write_text

    job = DoctorJob(given.target, given.mode, given.dtype, given.batch, given.seq, given.dp, given.tp)
    found = diagnose(job)
    if given.output is not None:
        write_text(given.output, found.plan.text)
    return Outcome(0, lambda: show_diagnosis(found, given.output), found.to_json)
