"""`stretto compile`: a target and a plan become a program folder."""

from __future__ import annotations

import argparse

from .arguments import add_json, add_target_options, check_target_options, dynamic_dims
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
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), help="default: the model's own")
    add_target_options(parser)
    parser.add_argument(
        "--dynamic", action="append", default=[], type=dynamic_dims, metavar="INPUT=NAME,NAME",
        help="names for the dims of an input, in order, whose sizes `run --sizes` sets, such as "
        "tokens=batch,seq:2..2048 (- for a fixed dim)",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true",
        help="compare the program with eager PyTorch and write the result into its manifest; exit 1 if it differs",
    )  # fmt: skip
    parser.add_argument(
        "--states", action="append", default=[], metavar="GLOB",
        help='buffers that stay with the ranks and change in place, such as "cache.*"; may be repeated',
    )  # fmt: skip
    parser.add_argument(
        "--target", choices=("cpu", "cuda"), default="cpu", dest="runs_on",
        help="what the program is for: with cuda chains of small operations become functions that may run as one "
        "kernel each. Needs no GPU; `run --target` runs either program on either. Default: cpu",
    )  # fmt: skip
    parser.add_argument("--dump-ir", metavar="DIR", help="write the module after each pass to this folder")
    add_json(parser)
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace) -> Outcome:
    """See `Command`."""
    check_target_options(arguments, arguments.target)
    require_compiler()
    from ..compile.compile_target import CompileJob, compile_entries, show_compiled
    from ..compile.compiled_json import compiled_json

    job = CompileJob(
        arguments.target, arguments.plan, arguments.output, arguments.mode, arguments.dtype, arguments.batch,
        arguments.seq, arguments.dump_ir, dict(arguments.dynamic), tuple(arguments.states), arguments.runs_on,
    )  # fmt: skip
    if not arguments.check:
        programs, seconds = compile_entries(job)
        return Outcome(0, lambda: show_compiled(programs, job, seconds), lambda: compiled_json(programs, job, seconds))
    from ..calls.compile_check import checked_record, show_checked

    programs, seconds = compile_entries(job, checked_record)

    def show() -> None:
        show_compiled(programs, job, seconds)
        for _, program in programs:
            show_checked(program)

    codes = [{"passed": 0, "failed": 1}.get(str(each.manifest.checked.get("result")), 3) for _, each in programs]
    code = 1 if 1 in codes else max(codes)
    return Outcome(code, show, lambda: compiled_json(programs, job, seconds))
