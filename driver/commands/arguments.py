"""Arguments that several commands share, and parsers of argument values."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..ir_files.module_source import Source

_PIPELINE = 'passes and their options, such as "fold-layers,canonicalize,place-arguments{plan=FILE}"'


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help='print one JSON object; an error is {"error": ...}')


def add_allow_ops(parser: argparse.ArgumentParser) -> None:
    """`--allow-ops PATTERN`, for commands that load a program."""
    parser.add_argument(
        "--allow-ops", action="append", default=[], metavar="PATTERN",
        help='ops of a library that the program may call, such as "transformers::*"; imports the library',
    )  # fmt: skip


def add_entry(parser: argparse.ArgumentParser, default: str) -> None:
    """`--entry NAME`, for commands that load a program; `default` is what they take without it."""
    parser.add_argument("--entry", metavar="NAME", help=f"an entry of a folder that has several; default: {default}")


def add_loading(parser: argparse.ArgumentParser) -> None:
    """What the caller adds to what a program may run: `--allow-ops PATTERN` and `--implementations NAME`."""
    add_allow_ops(parser)
    parser.add_argument(
        "--implementations", action="append", default=[], metavar="NAME",
        help="kernels that an installed package offers under this name, for functions with a kind; imports it",
    )  # fmt: skip


def read_loading(arguments: argparse.Namespace) -> None:
    """Allow the ops, and register the implementations, that the caller names."""
    from ...ops.allowed import allow_ops

    allow_ops(*arguments.allow_ops)
    if arguments.implementations:
        from ...runtime.implementations.registry import use_implementations

        use_implementations(*arguments.implementations)


def add_program_target(parser: argparse.ArgumentParser) -> None:
    """`--target NAME`, for commands that load a program."""
    parser.add_argument(
        "--target", choices=("cpu", "cuda"), dest="runs_on",
        help="what the program runs on: its functions with a kind by kernels of this target, or by their bodies; "
        "default: what it was compiled for",
    )  # fmt: skip


def add_pipeline(parser: argparse.ArgumentParser, *, required: bool = True, also: str = "") -> None:
    """`-p PIPELINE`."""
    parser.add_argument("-p", "--pipeline", required=required, metavar="PIPELINE", help=_PIPELINE + also)


def output_file(arguments: argparse.Namespace) -> str | None:
    """The file of `-o`; None for standard output ("-")."""
    return None if arguments.output == "-" else arguments.output


def add_source(parser: argparse.ArgumentParser) -> None:
    """FILE and `-p PIPELINE`, for commands that can read the pipeline from FILE."""
    parser.add_argument(
        "path", metavar="FILE", help="a module, - for standard input, or a folder that compile --dump-ir wrote"
    )
    add_pipeline(parser, required=False, also="; default: the passes that FILE names")
    parser.set_defaults(usage_error=parser.error)


def source_of(arguments: argparse.Namespace) -> Source:
    """The module and the pipeline; a usage error where there is no pipeline."""
    from ..ir_files.module_source import read_source

    source = read_source(arguments.path, arguments.pipeline)
    if source.pipeline is None:
        arguments.usage_error("name the passes with -p PIPELINE")
    return source


def add_check_options(parser: argparse.ArgumentParser, memory: str) -> None:
    """`--seed`, `--range` and `--memory-cap`: how modules are compared."""
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the random inputs; default: 0")
    add_ranges(parser)
    parser.add_argument("--memory-cap", type=size, metavar="SIZE", help=memory)


def add_ranges(parser: argparse.ArgumentParser) -> None:
    """`--range NAME=LO:HI`, as often as wanted."""
    parser.add_argument(
        "--range", action="append", default=[], type=integer_range, metavar="NAME=LO:HI", dest="ranges",
        help="values of an integer input whose range nothing else tells: LO <= value < HI",
    )  # fmt: skip


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """`--mode`, `--batch` and `--seq`: how a target is called."""
    parser.add_argument("--mode", choices=("train", "infer"), default="train", help="default: train")
    parser.add_argument("--batch", type=positive, metavar="B", help="examples in the global batch of an hf: target")
    parser.add_argument("--seq", type=positive, metavar="S", help="tokens per example of an hf: target")


def is_target(text: str) -> bool:
    """Whether a text has the form of a target, `FILE.py:FUNCTION` or `hf:MODEL`, not of a path."""
    return text.startswith("hf:") or re.fullmatch(r".+\.py:\w+(\.\w+)?", text) is not None


def check_target_options(arguments: argparse.Namespace, target: str) -> None:
    """A usage error where they do not fit the target."""
    if not target.startswith("hf:") and (arguments.batch or arguments.seq):
        arguments.usage_error("--batch and --seq are for hf: targets; a function in a file returns its own inputs")


def add_allow_unjudged(parser: argparse.ArgumentParser) -> None:
    """Add --allow-unjudged."""
    parser.add_argument(
        "--allow-unjudged", action="store_true", help="exit 0, not 3, where nothing could be compared (not judged)"
    )


def integer_range(text: str) -> tuple[str, int, int]:
    """A name and a range [low, high) of integers."""
    match = re.fullmatch(r"(?P<name>.+)=(?P<low>-?\d+):(?P<high>-?\d+)", text)
    if match is None or int(match["low"]) >= int(match["high"]):
        raise argparse.ArgumentTypeError(f'"{text}" is no range; expected NAME=LO:HI, such as tokens=0:1000')
    return match["name"], int(match["low"]), int(match["high"])


def dynamic_dims(text: str) -> tuple[str, dict[int, tuple[str, int | None, int | None]]]:
    """An input's name, and the names and ranges of its dims in order; "-" stands for a dim that stays fixed."""
    name, _, listed = text.partition("=")
    dims: dict[int, tuple[str, int | None, int | None]] = {}
    for dim, spec in enumerate(listed.split(",")):
        match = re.fullmatch(r"(?P<name>[^\W\d]\w*)(?::(?P<low>\d+)\.\.(?P<high>\d*))?|-", spec.strip())
        if match is None:
            raise argparse.ArgumentTypeError(
                f'"{text}" names no dims; expected INPUT=NAME,NAME:LO..HI, such as tokens=batch,seq:2..2048'
            )
        if match["name"]:
            dims[dim] = match["name"], _integer(match["low"]), _integer(match["high"])
    if not name or not dims:
        raise argparse.ArgumentTypeError(f'"{text}" names no dims; expected INPUT=NAME,NAME, such as tokens=batch,seq')
    return name, dims


def named_sizes(text: str) -> dict[str, int]:
    """Sizes by name."""
    pairs = [re.fullmatch(r"\s*([^\W\d]\w*)=(\d+)\s*", pair) for pair in text.split(",")]
    sizes = {match[1]: int(match[2]) for match in pairs if match is not None}
    if len(sizes) < len(pairs):
        raise argparse.ArgumentTypeError(
            f'"{text}" is no list of sizes; expected NAME=N,NAME=N, such as batch=6,seq=100'
        )
    return sizes


def _integer(text: str | None) -> int | None:
    return int(text) if text else None


def seed(text: str) -> int:
    """An integer that a generator of torch takes."""
    number = int(text)
    if not -(1 << 63) <= number < 1 << 63:
        raise argparse.ArgumentTypeError(f"a seed has 64 bits, and {text} does not fit")
    return number


def positive(text: str) -> int:
    """An integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


MEMORY_CAP = "memory of all ranks of the interpreter together; default: half of the machine's memory"


_SIZES = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip


def size(text: str) -> int:
    """Bytes, from a number with or without a unit: of plans (GB, a power of 1000) or of reports (GiB, of 1024)."""
    match = re.fullmatch(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)", text)
    if match is None or match["unit"] not in _SIZES:
        raise argparse.ArgumentTypeError(f'"{text}" is no size; expected a number and a unit, such as 512MiB or 80GB')
    return int(float(match["number"]) * _SIZES[match["unit"]])
