"""Globs over a model's dotted names.

`*` matches any characters, dots included; `?` one character; `[ab]`, `[0-9]` and `[!a]` one character of a set;
`{a,b}` either text. A glob matches a whole name and is case-sensitive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import translate
from functools import lru_cache

MAX_EXPANSIONS = 1000
"""The most globs that one glob with braces may expand to."""

MAX_LENGTH = 1000
"""The most characters of a glob."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_SET = re.compile(r"\[!?\]?[^\]]*\]")


def expand(pattern: str) -> tuple[str, ...]:
    """The globs without braces that `pattern` expands to, without duplicates; ValueError if there are too many.

    >>> expand("*.{q,k}_proj")
    ('*.q_proj', '*.k_proj')
    """
    globs = [pattern]
    while any(_BRACES.search(glob) for glob in globs):
        globs = list(dict.fromkeys(text for glob in globs for text in _expand_one(glob)))
        if len(globs) > MAX_EXPANSIONS:
            raise ValueError(f"its braces expand to more than {MAX_EXPANSIONS} patterns")
    return tuple(globs)


def _expand_one(glob: str) -> list[str]:
    """The glob with each alternative of its first innermost braces."""
    braces = _BRACES.search(glob)
    if braces is None:
        return [glob]
    return [glob[: braces.start()] + text + glob[braces.end() :] for text in braces[1].split(",")]


def flaw(pattern: str) -> str:
    """Why `pattern` is not a valid glob in a plan; empty if it is one."""
    if not pattern:
        return "it is empty"
    if len(pattern) > MAX_LENGTH:
        return f"it is longer than {MAX_LENGTH} characters"
    if set(pattern) & set('"\r\n'):
        return "it has a quote or a line break"
    try:
        expanded = expand(pattern)
    except ValueError as error:
        return str(error)
    if any(brace in glob for glob in expanded for brace in "{}"):
        return "a brace is unbalanced"
    if any("[" in _SET.sub("", glob) for glob in expanded):
        return 'a "[" has no closing "]"'
    return ""


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(translate(glob)) for glob in expand(pattern))


def matches(pattern: str, name: str) -> bool:
    """Whether the glob matches the whole of `name`."""
    return any(glob.match(name) for glob in _compiled(pattern))


def match(pattern: str, names: Iterable[str]) -> tuple[str, ...]:
    """The names that the glob matches, in the given order.

    >>> match("*.{q,k}_proj", ["h.0.q_proj", "h.0.v_proj"])
    ('h.0.q_proj',)
    """
    return tuple(name for name in names if matches(pattern, name))


def _generic(name: str) -> str:
    """The name with `*` in place of each number."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def nearest_patterns(pattern: str, names: Iterable[str], count: int = 3) -> tuple[str, ...]:
    """At most `count` similar patterns that match a name; the last parts of the names are compared.

    >>> nearest_patterns("*.q_prj", ["model.layers.0.q_proj", "model.layers.1.q_proj", "model.norm"])
    ('*.q_proj',)
    """
    known = tuple(dict.fromkeys(names))
    patterns: dict[str, None] = {}
    for glob in expand(pattern)[:16]:
        suffix = glob.lstrip("*.")
        depth = suffix.count(".") + 1
        candidates = dict.fromkeys(_generic(name) if "*" in suffix else name for name in known)
        tails = {".".join(name.split(".")[-depth:]): name for name in candidates}
        for tail in get_close_matches(suffix, tails, n=count, cutoff=0.6):
            patterns[tail if tails[tail] == tail else f"*.{tail}"] = None
    return tuple(patterns)[:count]
