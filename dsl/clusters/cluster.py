"""Cluster files: how many nodes, which GPU, and the rates of their links.

    cluster { nodes 128  gpus 8  gpu "H100-SXM-80GB"  nvlink 450GB/s  network 50GB/s  latency 4us }

Rates are bytes per second, per GPU, in one direction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from pathlib import Path

from lark import Lark, Token
from lark.exceptions import UnexpectedInput, UnexpectedToken

from ...diagnostics import Span, StrettoError
from ..source import Source
from ..spelling import did_you_mean, similar_path

ITEMS = ("nodes", "gpus", "gpu", "nvlink", "network", "latency")
"""What a cluster file may say."""
_RATES = {"B/s": 1.0, "KB/s": 1e3, "MB/s": 1e6, "GB/s": 1e9, "TB/s": 1e12}
_TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_NUMBER = re.compile(r"([-+]?[0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)(.*)")


class ClusterCode(StrEnum):
    """The error codes of cluster files; `docs/errors.md` has a line for each."""

    SYNTAX = "E0803"
    BAD_ITEM = "E0804"
    NOT_FOUND = "E0805"


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal GPUs. Ranks fill one node after the other."""

    nodes: int
    gpus: int
    """GPUs of a node."""
    gpu: str
    """The name of a file in `costs/gpus`."""
    network: float
    """Bytes a second between nodes, for each GPU, in one direction."""
    latency: float = 4e-6
    """Seconds that a message between nodes takes beside its bytes."""
    nvlink: float | None = None
    """Bytes a second to the other GPUs of a node, in one direction; None: as the GPU's data sheet says."""

    @property
    def ranks(self) -> int:
        """All GPUs."""
        return self.nodes * self.gpus

    def changed(self, item: str, value: str) -> Cluster:
        """The cluster with another value of one item, written as in a file. Errors: E0804."""
        if item == "gpu" and not value.startswith('"'):
            value = f'"{value}"'
        return Cluster.parse(f"cluster {{ {self._written(item)} {item} {value} }}", "--set")

    def _written(self, without: str) -> str:
        """The items as text, but for one."""
        texts = {
            "nodes": f"{self.nodes}", "gpus": f"{self.gpus}", "gpu": f'"{self.gpu}"',
            "network": f"{self.network:.17g}B/s", "latency": f"{self.latency:.17g}s",
        }  # fmt: skip
        if self.nvlink is not None:
            texts["nvlink"] = f"{self.nvlink:.17g}B/s"
        return " ".join(f"{name} {text}" for name, text in texts.items() if name != without)

    @staticmethod
    def load(path: str | Path) -> Cluster:
        """Read a cluster file. Errors: E0803 to E0805."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            message = f"the cluster file '{path}' cannot be read: {reason}"
            raise StrettoError(ClusterCode.NOT_FOUND, message, help=similar_path(str(path), ".cluster")) from None
        return Cluster.parse(text, str(path))

    @staticmethod
    def parse(text: str, file: str = "<cluster>") -> Cluster:
        """The cluster that a text describes. Errors: E0803, E0804."""
        source = Source(file, text)
        try:
            tree = _grammar().parse(text)
        except UnexpectedInput as error:
            raise _unexpected(error, source) from None
        items: dict[str, Token] = {}
        for node in tree.find_data("item"):
            name, value = (token for token in node.children if isinstance(token, Token))
            _check_name(name, items, source)
            items[str(name)] = value
        return _cluster(items, source)


def _cluster(items: dict[str, Token], source: Source) -> Cluster:
    first = Span(source.file, 1, 1, 1, source.lines[0])
    if missing := [name for name in ("nodes", "gpus", "gpu", "network") if name not in items]:
        message = f'the cluster lacks "{missing[0]}"'
        help = 'a whole one is: cluster { nodes 2  gpus 8  gpu "H100-SXM-80GB"  network 50GB/s }'
        raise StrettoError(ClusterCode.BAD_ITEM, message, span=first, help=help)
    return Cluster(
        nodes=_count("nodes", items, source),
        gpus=_count("gpus", items, source),
        gpu=_text("gpu", items, source),
        network=_amount("network", items, source, _RATES),
        latency=_amount("latency", items, source, _TIMES) if "latency" in items else Cluster.latency,
        nvlink=_amount("nvlink", items, source, _RATES) if "nvlink" in items else None,
    )


def _check_name(name: Token, items: dict[str, Token], source: Source) -> None:
    if name not in ITEMS:
        message = f'a cluster has no item "{name}"'
        raise StrettoError(
            ClusterCode.BAD_ITEM, message, span=source.span_of(name), expected=f"expected {', '.join(ITEMS)}",
            help=did_you_mean(name, ITEMS),
        )  # fmt: skip
    if name in items:
        message = f'the cluster sets "{name}" twice'
        raise StrettoError(ClusterCode.BAD_ITEM, message, span=source.span_of(name), help="keep one of them")


def _count(name: str, items: dict[str, Token], source: Source) -> int:
    token = items[name]
    if not token.isdigit() or int(token) == 0:
        message = f'"{name}" is a whole number from 1, found {token}'
        raise StrettoError(ClusterCode.BAD_ITEM, message, span=source.span_of(token))
    return int(token)


def _text(name: str, items: dict[str, Token], source: Source) -> str:
    token = items[name]
    if token.type != "TEXT":
        message = f'"{name}" is a name in double quotes, found {token}'
        raise StrettoError(ClusterCode.BAD_ITEM, message, span=source.span_of(token))
    return str(token)[1:-1]


def _amount(name: str, items: dict[str, Token], source: Source, units: dict[str, float]) -> float:
    """A number above 0 with its unit."""
    token = items[name]
    found = _NUMBER.fullmatch(token)
    if found is None or found[2] not in units:
        message = f'"{name}" is a number with a unit glued to it, found {token}'
        raise StrettoError(
            ClusterCode.BAD_ITEM, message, span=source.span_of(token), expected=f"expected {', '.join(units)}"
        )
    value = float(found[1]) * units[found[2]]
    if value <= 0:
        message = f'"{name}" is above 0, found {token}'
        raise StrettoError(ClusterCode.BAD_ITEM, message, span=source.span_of(token))
    return value


def _unexpected(error: UnexpectedInput, source: Source) -> StrettoError:
    at_end = isinstance(error, UnexpectedToken) and error.token.type == "$END"
    line = len(source.lines) if at_end else max(error.line, 1)
    column = len(source.lines[-1]) + 1 if at_end else max(error.column, 1)
    message = "the cluster ends too early" if at_end else "this is no cluster file"
    help = 'it is: cluster { nodes 2  gpus 8  gpu "H100-SXM-80GB"  network 50GB/s }'
    return StrettoError(ClusterCode.SYNTAX, message, span=source.span(line, column, 1), help=help)


@cache
def _grammar() -> Lark:
    return Lark(files(__package__).joinpath("cluster.lark").read_text(encoding="utf-8"), parser="lalr")
