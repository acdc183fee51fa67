"""`stretto doctor`: what a model is to a plan, and a plan to start from."""

from __future__ import annotations

import argparse

from .arguments import add_json, positive
from .outcome import Outcome, require_compiler

HELP = "propose a plan for a model, and list its parameters and what stays replicated"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.add_argument("target", metavar="TARGET", help="a model, as for stretto compile")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the plan to this file")
    parser.add_argument("--mode", choices=("train", "infer"), default="train", help="default: train")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), help="default: the model's own")
    parser.add_argument("--batch", type=positive, metavar="B", help="examples in the global batch of an hf: target")
    parser.add_argument("--seq", type=positive, metavar="S", help="tokens per example of an hf: target")
    parser.add_argument("--dp", type=positive, default=2, metavar="N", help="data-parallel ranks; default: 2")
    parser.add_argument("--tp", type=positive, default=2, metavar="N", help="tensor-parallel ranks; default: 2")
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    if not arguments.target.startswith("hf:") and (arguments.batch or arguments.seq):
        arguments.usage_error("--batch and --seq are for hf: targets; a function in a file returns its own inputs")
    require_compiler()
    from ..doctor.diagnosis import DoctorJob, diagnose
    from ..doctor.show import show_diagnosis
    from ..text.text_files import write_text

    job = DoctorJob(
        arguments.target, arguments.mode, arguments.dtype, arguments.batch, arguments.seq, arguments.dp, arguments.tp
    )
    diagnosis = diagnose(job)
    if arguments.output is not None:
        write_text(arguments.output, diagnosis.plan.text)
    return Outcome(0, lambda: show_diagnosis(diagnosis, arguments.output), diagnosis.to_json)
