"""One process compiles for all: what it tells the others, a program or why there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...diagnostics import Span, StrettoError
from ...frontend.dynamic_sizes.size_guards import NotSymbolic
from ...runtime.processes.sharing import Sharing
from ...runtime.program.arguments import Json
from ...runtime.program.packed import pack, unpack
from ...runtime.program.program import Program
from ..cache.store import CacheEntry

_NO_KEY = bytes(32)
_PROGRAM, _ERROR, _NOT_SYMBOLIC = b"P", b"E", b"N"


class SharedPrograms:
    """The programs of one process among several; `key` is that of the compile, "" where there is none."""

    def __init__(self, sharing: Sharing | None, key: str) -> None:
        self._sharing = sharing
        self._is_shared = bool(sharing and sharing.agrees(bytes.fromhex(key) or _NO_KEY) and key)

    def told(self) -> CacheEntry | None:
        """The program of the process that compiles; None where this one does.

        Raises the StrettoError or NotSymbolic that the other raised, and CollectiveError where it died.
        """
        if self._sharing is None or not self._is_shared or self._sharing.is_worker:
            return None
        data = self._sharing.told()
        kind, content = data[:1], data[1:]
        if kind == _ERROR:
            raise _decoded(json.loads(content))
        if kind == _NOT_SYMBOLIC:
            raise NotSymbolic(content.decode())
        return CacheEntry(*unpack(content, Path("the program of rank 0")))

    def tell(self, program: Program, notes: Mapping[str, Json]) -> None:
        """Give the others a program, where they wait for one."""
        self._tell(_PROGRAM, pack(program, notes) if self._is_shared else b"")

    @contextmanager
    def failures_told(self) -> Iterator[None]:
        """Inside, an error of the compile is told to the others; one that is a bug of Stretto stops them (E0323)."""
        try:
            yield
        except StrettoError as error:
            self._tell(_ERROR, json.dumps(_encoded(error)).encode())
            raise
        except NotSymbolic as error:
            self._tell(_NOT_SYMBOLIC, str(error).encode())
            raise

    def _tell(self, kind: bytes, data: bytes) -> None:
        if self._sharing is not None and self._is_shared:
            self._sharing.tell(kind + data)


def _encoded(error: StrettoError) -> dict[str, Any]:
    return {
        "type": type(error).__qualname__, "code": str(error.code), "message": error.message,
        "span": _span(error.span), "expected": error.expected, "help": error.help,
        "notes": [[message, _span(span)] for message, span in error.notes],
    }  # fmt: skip


def _decoded(value: Mapping[str, Any]) -> StrettoError:
    """The same error, of the same class where this process has it."""
    kind = next((each for each in _kinds(StrettoError) if each.__qualname__ == value["type"]), StrettoError)
    error = kind.__new__(kind)
    StrettoError.__init__(
        error,
        value["code"],
        value["message"],
        span=_placed(value["span"]),
        expected=value["expected"],
        notes=tuple((message, _placed(span)) for message, span in value["notes"]),
        help=value["help"],
    )
    return error


def _kinds(kind: type[StrettoError]) -> Iterator[type[StrettoError]]:
    for each in kind.__subclasses__():
        yield each
        yield from _kinds(each)


def _span(span: Span | None) -> list[Any] | None:
    return None if span is None else [span.file, span.line, span.column, span.length, span.text]


def _placed(value: list[Any] | None) -> Span | None:
    return None if value is None else Span(*value)
