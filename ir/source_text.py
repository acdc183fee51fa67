"""Read modules from hand-written files; errors have a line and column in the file.

A printed module has locations of the user's model, and MLIR and the verifier report those. To find the position in the
module's text, it is parsed again with its locations blanked out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from ..diagnostics import Span, StrettoError
from .bindings import Operation, mlir
from .locations import from_location
from .module import Module
from .module_form import constant_problems, form_problems
from .verifier import Problem, problems, verify

_UNNAMED = 'loc("-":'
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|[()]|(?<![\w.$-])#\w+\s*=\s*loc(?=\()|(?<![\w.$-])loc(?=\()')


def read_module(text: str, file: str) -> Module:
    """Parse and verify a module. Errors E0504 and E0505 have a position in `file`; E0506 is MLIR's, without one."""
    try:
        module = parse_named(text, file)
        _check(form_problems(module))
        _check(constant_problems(module))
        verify(module)
    except StrettoError as error:
        raise _placed(error, text, file) from None
    return module


def parse_named(text: str, file: str) -> Module:
    """Parse a module; operations without a location get their position in `file`. Errors: E0504.

    MLIR calls the text "-". This stays if the name is in angle brackets, such as "<stdin>".
    """
    module = Module.parse(text, file)
    if file.startswith("<"):
        return module
    printed = module.text()
    named = printed.replace(_UNNAMED, f"loc({json.dumps(file, ensure_ascii=False)}:")
    return module if named == printed else Module.parse(named, file)


def without_locations(text: str) -> str:
    """The text with locations blanked out; all else keeps its line and column.

    >>> without_locations('return %0 : f32 loc("a.py":1:2)')
    'return %0 : f32                 '
    """
    characters, begin, depth = list(text), 0, 0
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
                characters[begin : token.end()] = [c if c == "\n" else " " for c in text[begin : token.end()]]
    return "".join(characters)


def _check(problems: Iterator[Problem]) -> None:
    for problem in problems:
        raise StrettoError("E0505", f'"{problem.op.operation.name}": {problem.message}', span=_origin(problem.op))


def _first(module: Module) -> Problem | None:
    """The first violation of the form or of the verifier's rules."""
    for checks in (form_problems, constant_problems, problems):
        problem = next(checks(module), None)
        if problem is not None:
            return problem
    return None


def _origin(op: Operation) -> Span | None:
    """The line of the user's model that an operation belongs to."""
    origin = from_location(op.location)
    return Span(origin.file, origin.line) if origin.file else None


def _placed(error: StrettoError, text: str, file: str) -> StrettoError:
    """The error with its position in the text, if it can be found."""
    if error.code == "E0504" and error.span is not None:
        return error
    try:
        bare = Module.parse(without_locations(text), file)
    except StrettoError as parse_error:
        return parse_error if parse_error.span is not None else error
    problem = _first(bare)
    if error.code != "E0505" or problem is None:
        return error
    span = _span(problem.op, text, file)
    notes = (
        (("it belongs to this line of the model", error.span),)
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
