"""Arguments that several commands take, and the types of their values."""

from __future__ import annotations

import argparse
import re

_PIPELINE = 'passes and their options, such as "fold-layers,canonicalize,place-arguments{plan=FILE}"'


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def add_pipeline(parser: argparse.ArgumentParser, *, required: bool = True, also: str = "") -> None:
    """`-p PIPELINE`."""
    parser.add_argument("-p", "--pipeline", required=required, metavar="PIPELINE", help=_PIPELINE + also)


def positive(text: str) -> int:
    """An integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def size(text: str) -> int:
    """Bytes, of a number with or without a unit."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f'"{text}" is no size, such as 1000000, 512MiB or 80GiB')
    unit = ("B", "KiB", "MiB", "GiB", "TiB").index(match[2] or "B")
    return int(float(match[1]) * 1024**unit)
