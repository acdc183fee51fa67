"""The `stretto` command: arguments, exit codes, and how errors are shown. What commands do is in `driver/`.

Exit codes: 0 done, 1 an error or a failed check, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from . import __version__
from .diagnostics import StrettoError

_INTERRUPTED = 130
_REPORT = (
    "This is a mistake in Stretto, not in what you gave it. Please report it with the lines above, the command,\n"
    "the plan, and the output of `stretto --version`."
)
_PIPELINE = 'passes and their options, such as "fold-layers,canonicalize,place-arguments{plan=FILE}"'
_COMPILER = ("torch_mlir", "lark", "networkx")
"""What the compiler needs and a base install lacks."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code. Wrong usage raises SystemExit(2)."""
    given = _parser().parse_args(arguments)
    try:
        code = _run(given)
        sys.stdout.flush()
        return code
    except StrettoError as error:
        print(error.render(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stretto: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # it goes on, with a word about what to do
        error.add_note(_REPORT)
        raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stretto", description="Compile a PyTorch model and a plan to a parallel program; run, check, explain it."
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_compile(commands.add_parser("compile", help="compile a model and a plan to a program folder"))
    _add_run(commands.add_parser("run", help="run a program for some steps, or check it against one device"))
    explain = commands.add_parser("explain", help="show a program's placements, communication and remarks")
    explain.add_argument("folder", metavar="DIR", help="a program folder")
    explain.add_argument("--json", action="store_true", help="print one JSON object instead")
    _add_opt(commands.add_parser("opt", help="run passes on a module of the IR and print what they leave"))
    passes = commands.add_parser("passes", help="list the passes, or show one's page")
    passes.add_argument("name", metavar="NAME", nargs="?", help="a pass; default: list all")
    passes.add_argument("--json", action="store_true", help="print one JSON object instead")
    _add_verify(
        commands.add_parser("verify", help="prove a program's order, or compare values before and after passes")
    )
    return parser


def _add_compile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="path/to/file.py:name, a function that returns (model, example inputs as a dict); or hf:PATH, a folder or "
        "JSON file with a Hugging Face config",
    )
    parser.add_argument("--plan", required=True, metavar="FILE", help="the plan")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="where to write the program folder")
    parser.add_argument("--mode", choices=("train", "infer"), default="train", help="default: train")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), help="default: the model's own")
    parser.add_argument("--batch", type=_positive, metavar="B", help="examples in the global batch of an hf: target")
    parser.add_argument("--seq", type=_positive, metavar="S", help="tokens per example of an hf: target")
    parser.add_argument("--dump-ir", metavar="DIR", help="write the module after each pass into this folder, for opt")
    parser.set_defaults(usage_error=parser.error)


def _add_opt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="a module; default: standard input")
    parser.add_argument("-p", "--pipeline", required=True, metavar="PIPELINE", help=_PIPELINE)
    parser.add_argument("-o", "--output", metavar="OUT", help="write the module there instead of to standard output")
    parser.add_argument(
        "--print-after", action="append", default=[], metavar="PASS", help="print the module after a pass, to stderr"
    )
    parser.add_argument("--print-after-all", action="store_true", help="print the module after every pass")
    parser.add_argument("--print-changed", action="store_true", help="print the module after passes that change it")
    parser.add_argument("--time-passes", action="store_true", help="say how long each pass took")
    parser.add_argument("--no-verify", action="store_true", help="verify neither the module nor what passes leave")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="DIR|FILE", help="a program folder; with -p a module, - for standard input")
    parser.add_argument("-p", "--pipeline", metavar="PIPELINE", help=_PIPELINE)
    parser.add_argument(
        "--memory-cap",
        type=_size,
        metavar="SIZE",
        help="what a rank of the program may take, such as 80GiB; with -p what all ranks of the interpreter may take "
        "(default: half of the machine's memory)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="with -p: of the random inputs; default: 0")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(usage_error=parser.error)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a program folder")
    parser.add_argument("--ranks", choices=("threads", "processes"), default="threads", help="default: threads")
    parser.add_argument("--steps", type=_positive, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--check", action="store_true", help="compare with the model on one device; exit 1 if it differs"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


@dataclass(frozen=True)
class _Outcome:
    """What a command found: the exit code, and two ways to say it."""

    code: int
    show: Callable[[], None]
    to_json: Callable[[], Mapping[str, object]] = dict


def _run(given: argparse.Namespace) -> int:
    commands = {
        "compile": _compile, "run": _run_program, "explain": _explain, "opt": _opt, "passes": _passes,
        "verify": _verify_program if getattr(given, "pipeline", None) is None else _verify_passes,
    }  # fmt: skip
    with redirect_stdout(sys.stderr):  # what a model's own code prints is no result
        outcome = commands[given.command](given)
    if getattr(given, "json", False):
        print(json.dumps(_finite(outcome.to_json()), allow_nan=False, indent=1))
    else:
        outcome.show()
    return outcome.code


def _compile(given: argparse.Namespace) -> _Outcome:
    if not given.target.startswith("hf:") and (given.batch or given.seq):
        given.usage_error("--batch and --seq are for hf: targets; a function in a file makes its own inputs")
    _require_compiler()
    from .driver.compile_target import CompileJob, compile_target, show_compiled

    job = CompileJob(
        given.target, given.plan, given.output, given.mode, given.dtype, given.batch, given.seq, given.dump_ir
    )
    program, seconds = compile_target(job)
    return _Outcome(0, lambda: show_compiled(program, job, seconds))


def _run_program(given: argparse.Namespace) -> _Outcome:
    from .driver.run_program import RunJob, check_json, run_check, run_for_steps, show_check, show_steps, steps_json

    job = RunJob(given.folder, given.ranks, given.steps)
    if not given.check:
        program, steps = run_for_steps(job)
        return _Outcome(0, lambda: show_steps(program, job, steps), lambda: steps_json(program, job, steps))
    report, comparison = run_check(job)
    code = 0 if report.passed else 1
    return _Outcome(code, lambda: show_check(report, comparison), lambda: check_json(job, report, comparison))


def _explain(given: argparse.Namespace) -> _Outcome:
    from .driver.explain import explain
    from .driver.show_explanation import show_explanation
    from .runtime.program import Program

    explanation = explain(Program.load(given.folder))
    return _Outcome(0, lambda: show_explanation(explanation), explanation.to_json)


def _opt(given: argparse.Namespace) -> _Outcome:
    _require_compiler()
    from .driver.opt import OptJob, optimize, optimized_json, show_optimized
    from .passes.manager import Verification

    job = OptJob(
        given.file,
        given.pipeline,
        given.output,
        tuple(given.print_after),
        given.print_after_all,
        given.print_changed,
        given.time_passes,
        Verification.NEVER if given.no_verify else Verification.AFTER_EACH,
    )
    done = optimize(job)
    return _Outcome(0, lambda: show_optimized(job, done), lambda: optimized_json(job, done))


def _passes(given: argparse.Namespace) -> _Outcome:
    _require_compiler()
    from .driver.pass_pages import all_pages, pass_page, show_list, show_page

    if given.name is not None:
        page = pass_page(given.name)
        return _Outcome(0, lambda: show_page(page), page.to_json)
    pages = all_pages()
    return _Outcome(0, lambda: show_list(pages), lambda: {"passes": [page.to_json() for page in pages]})


def _verify_program(given: argparse.Namespace) -> _Outcome:
    if given.path == "-" or os.path.isfile(given.path):
        given.usage_error("a module is verified pass by pass: name the passes with -p PIPELINE")
    from .driver.verify_program import show_verdict, verify_program

    proved = verify_program(given.path, given.memory_cap)
    return _Outcome(0 if proved.verdict.safe else 1, lambda: show_verdict(proved), proved.to_json)


def _verify_passes(given: argparse.Namespace) -> _Outcome:
    if os.path.isdir(given.path):
        given.usage_error("-p is for a module's file; a program folder is proved without it")
    _require_compiler()
    from .driver.verify_passes import PassesJob, show_passes, verify_passes

    report = verify_passes(PassesJob(given.path, given.pipeline, given.seed, memory_cap_bytes=given.memory_cap))
    return _Outcome(0 if report.passed else 1, lambda: show_passes(report), report.to_json)


def _require_compiler() -> None:
    missing = [name for name in _COMPILER if find_spec(name) is None]
    if missing:
        raise StrettoError(
            "E0501",
            f"the compiler is not installed: {', '.join(missing)} cannot be imported",
            help='pip install "stretto[compiler]"; programs that are compiled already run without it',
        )


def _finite(value: object) -> object:
    """The value with every float that JSON lacks as a string."""
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case Mapping():
            return {key: _finite(each) for key, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
        case _:
            return value


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _size(text: str) -> int:
    """Bytes, of a number with or without a unit."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f'"{text}" is no size, such as 1000000, 512MiB or 80GiB')
    unit = ("B", "KiB", "MiB", "GiB", "TiB").index(match[2] or "B")
    return int(float(match[1]) * 1024**unit)


def _version() -> str:
    try:
        return f"stretto {__version__} (torch {version('torch')}, python {sys.version.split()[0]})"
    except PackageNotFoundError:
        return f"stretto {__version__} (no torch)"
