"""Arguments that several commands take, and the types of their values."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..ir_files.module_source import Source

_PIPELINE = 'passes and their options, such as "fold-layers,canonicalize,place-arguments{plan=FILE}"'


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument(
        "--json", action="store_true", help='print one JSON object instead; for an error {"error": ...}'
    )


def add_pipeline(parser: argparse.ArgumentParser, *, required: bool = True, also: str = "") -> None:
    """`-p PIPELINE`."""
    parser.add_argument("-p", "--pipeline", required=required, metavar="PIPELINE", help=_PIPELINE + also)


def output_file(given: argparse.Namespace) -> str | None:
    """What `-o` names; None where it is standard output, which "-" stands for."""
    return None if given.output == "-" else given.output


def add_source(parser: argparse.ArgumentParser) -> None:
    """FILE and `-p PIPELINE`, for commands that may find the pipeline in what they read."""
    parser.add_argument(
        "path", metavar="FILE", help="a module, - for standard input, or a folder that compile --dump-ir wrote"
    )
    add_pipeline(parser, required=False, also="; default: what the file or the folder names")
    parser.set_defaults(usage_error=parser.error)


def source_of(given: argparse.Namespace) -> Source:
    """The module and the pipeline that are meant; wrong usage where there is no pipeline."""
    from ..ir_files.module_source import read_source

    source = read_source(given.path, given.pipeline)
    if source.pipeline is None:
        given.usage_error("name the passes with -p PIPELINE")
    return source


def add_terms(parser: argparse.ArgumentParser, memory: str) -> None:
    """`--seed`, `--range` and `--memory-cap`: how modules are compared."""
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random inputs; default: 0")
    parser.add_argument(
        "--range", action="append", default=[], type=integer_range, metavar="NAME=LO:HI", dest="ranges",
        help="the integers from LO up to but without HI for an input of which the module does not tell",
    )  # fmt: skip
    parser.add_argument("--memory-cap", type=size, metavar="SIZE", help=memory)


def integer_range(text: str) -> tuple[str, int, int]:
    """A name, and integers [low, high)."""
    match = re.fullmatch(r"(?P<name>.+)=(?P<low>-?\d+):(?P<high>-?\d+)", text)
    if match is None or int(match["low"]) >= int(match["high"]):
        raise argparse.ArgumentTypeError(f'"{text}" is no range of an input, such as tokens=0:1000')
    return match["name"], int(match["low"]), int(match["high"])


def dynamic_dims(text: str) -> tuple[str, dict[int, tuple[str, int | None, int | None]]]:
    """An input and names with ranges for its dims, in their order; a dim that is "-" stays as it is."""
    name, _, listed = text.partition("=")
    dims: dict[int, tuple[str, int | None, int | None]] = {}
    for dim, each in enumerate(listed.split(",")):
        match = re.fullmatch(r"(?P<name>[^\W\d]\w*)(?::(?P<low>\d+)\.\.(?P<high>\d*))?|-", each.strip())
        if match is None:
            raise argparse.ArgumentTypeError(
                f'"{text}" names no dims, such as tokens=batch,seq or tokens=batch,seq:2..2048'
            )
        if match["name"]:
            dims[dim] = match["name"], _whole(match["low"]), _whole(match["high"])
    if not name or not dims:
        raise argparse.ArgumentTypeError(f'"{text}" names no dims of an input, such as tokens=batch,seq')
    return name, dims


def named_sizes(text: str) -> dict[str, int]:
    """Sizes by name."""
    pairs = [re.fullmatch(r"\s*([^\W\d]\w*)=(\d+)\s*", each) for each in text.split(",")]
    found = {match[1]: int(match[2]) for match in pairs if match is not None}
    if len(found) < len(pairs):
        raise argparse.ArgumentTypeError(f'"{text}" is no list of sizes, such as batch=6,seq=100')
    return found


def _whole(text: str | None) -> int | None:
    return int(text) if text else None


def positive(text: str) -> int:
    """An integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


MEMORY_CAP = "what all ranks of the interpreter may take together; default: half of the machine's memory"


def size(text: str) -> int:
    """Bytes, of a number with or without a unit."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f'"{text}" is no size, such as 1000000, 512MiB or 80GiB')
    unit = ("B", "KiB", "MiB", "GiB", "TiB").index(match[2] or "B")
    return int(float(match[1]) * 1024**unit)
