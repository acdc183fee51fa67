"""Modules read from files that people write or edit: what is wrong is shown at its line and column in that file.

A printed module carries the places of the user's model, so that MLIR and the verifier speak of those. To find the place
in the module's own text, it is parsed once more with its locations blanked out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from ..diagnostics import Span, StrettoError
from .bindings import Operation, mlir
from .locations import from_location
from .module import Module
from .module_form import malformed, unreadable
from .verifier import Problem, problems, verify

_UNNAMED = 'loc("-":'
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|[()]|(?<![\w.$-])#\w+\s*=\s*loc(?=\()|(?<![\w.$-])loc(?=\()')


def read_module(text: str, file: str) -> Module:
    """Parse and verify a module. Errors E0504 and E0505 have the place in `file`, E0506 where MLIR tells none."""
    try:
        module = parse_named(text, file)
        _check(malformed(module))
        _check(unreadable(module))
        verify(module)
    except StrettoError as error:
        raise _placed(error, text, file) from None
    return module


def parse_named(text: str, file: str) -> Module:
    """Parse a module; what has no location in the text gets its place in `file`. Errors: E0504.

    MLIR calls that text "-" whatever its file; so it stays for a name in angle brackets, such as "<stdin>".
    """
    module = Module.parse(text, file)
    if file.startswith("<"):
        return module
    printed = module.text()
    named = printed.replace(_UNNAMED, f"loc({json.dumps(file, ensure_ascii=False)}:")
    return module if named == printed else Module.parse(named, file)


def without_locations(text: str) -> str:
    """The same module without its locations; what is left stands in the lines and columns where it stood.

    >>> without_locations('return %0 : f32 loc("a.py":1:2)')
    'return %0 : f32                 '
    """
    kept, begin, depth = list(text), 0, 0
    for token in _TOKEN.finditer(text):
        word = token.group()
        if depth == 0:
            if word.endswith("loc"):
                begin, depth = token.start(), -1
        elif word == "(":
            depth = max(depth, 0) + 1
        elif word == ")":
            depth -= 1
            if depth == 0:
                kept[begin : token.end()] = [c if c == "\n" else " " for c in text[begin : token.end()]]
    return "".join(kept)


def _check(found: Iterator[Problem]) -> None:
    for problem in found:
        raise StrettoError("E0505", f'"{problem.op.operation.name}": {problem.message}', span=_origin(problem.op))


def _first(module: Module) -> Problem | None:
    """The first violation of any kind."""
    for found in (malformed, unreadable, problems):
        problem = next(found(module), None)
        if problem is not None:
            return problem
    return None


def _origin(op: Operation) -> Span | None:
    """The line of the user's model that an operation was made for."""
    origin = from_location(op.location)
    return Span(origin.file, origin.line) if origin.file else None


def _placed(error: StrettoError, text: str, file: str) -> StrettoError:
    """The error with its place in the text, where that can be found."""
    if error.code == "E0504" and error.span is not None:
        return error
    try:
        bare = Module.parse(without_locations(text), file)
    except StrettoError as found:
        return found if found.span is not None else error
    problem = _first(bare)
    if error.code != "E0505" or problem is None:
        return error
    span = _span(problem.op, text, file)
    notes = (
        (("it was made for this line of the model", error.span),)
        if error.span and error.span.file not in ("-", file)
        else ()
    )
    return StrettoError("E0505", f'"{problem.op.operation.name}": {problem.message}', span=span, notes=notes)


def _span(op: Operation, text: str, file: str) -> Span | None:
    place = op.location
    if not isinstance(place, mlir.FileLineColLoc):
        return None
    line, lines = int(place.start_line), text.splitlines()
    shown = lines[line - 1] if 0 < line <= len(lines) else ""
    return Span(file, line, int(place.start_col), len(op.operation.name) + 2, shown)
