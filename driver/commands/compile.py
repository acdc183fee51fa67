"""`stretto compile`: a target and a plan become a program folder."""

from __future__ import annotations

import argparse

from .arguments import add_json, dynamic_dims, positive
from .outcome import Outcome, require_compiler

HELP = "compile a model and a plan to a program folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="path/to/file.py:name, a function that returns (model, dict of example inputs); or hf:PATH, a folder or "
        "JSON file with a Hugging Face config",
    )
    parser.add_argument("--plan", required=True, metavar="FILE", help="the plan")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="where to write the program folder")
    parser.add_argument("--mode", choices=("train", "infer"), default="train", help="default: train")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), help="default: the model's own")
    parser.add_argument("--batch", type=positive, metavar="B", help="examples in the global batch of an hf: target")
    parser.add_argument("--seq", type=positive, metavar="S", help="tokens per example of an hf: target")
    parser.add_argument(
        "--dynamic", action="append", default=[], type=dynamic_dims, metavar="INPUT=NAME,NAME",
        help="names for the dims of an input, in order, whose sizes `run --sizes` sets, such as "
        "tokens=batch,seq:2..2048 (- for a fixed dim)",
    )  # fmt: skip
    parser.add_argument("--dump-ir", metavar="DIR", help="write the module after each pass to this folder")
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    if not arguments.target.startswith("hf:") and (arguments.batch or arguments.seq):
        arguments.usage_error("--batch and --seq are for hf: targets; a function in a file returns its own inputs")
    require_compiler()
    from ..compile.compile_target import CompileJob, compile_target, show_compiled
    from ..compile.compiled_json import compiled_json

    job = CompileJob(
        arguments.target, arguments.plan, arguments.output, arguments.mode, arguments.dtype, arguments.batch,
        arguments.seq, arguments.dump_ir, dict(arguments.dynamic),
    )  # fmt: skip
    program, seconds = compile_target(job)
    return Outcome(0, lambda: show_compiled(program, job, seconds), lambda: compiled_json(program, job, seconds))
