"""Globs over a model's own dotted names.

`*` stands for any characters, dots included; `?` for one character; `[ab]`, `[0-9]` and `[!a]` for one of a set;
`{a,b}` for either text. A glob matches a whole name, and case counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import translate
from functools import lru_cache

MAX_EXPANSIONS = 1000
"""Globs that one glob with braces may stand for."""

MAX_LENGTH = 1000
"""Characters of one glob."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_SET = re.compile(r"\[!?\]?[^\]]*\]")


def expand(pattern: str) -> tuple[str, ...]:
    """The globs without braces that `pattern` stands for, each once; ValueError where they are too many.

    >>> expand("*.{q,k}_proj")
    ('*.q_proj', '*.k_proj')
    """
    globs = [pattern]
    while any(_BRACES.search(glob) for glob in globs):
        globs = list(dict.fromkeys(text for glob in globs for text in _expand_one(glob)))
        if len(globs) > MAX_EXPANSIONS:
            raise ValueError(f"its braces stand for more than {MAX_EXPANSIONS} patterns")
    return tuple(globs)


def _expand_one(glob: str) -> list[str]:
    """The glob once for each alternative of its first innermost braces."""
    found = _BRACES.search(glob)
    if found is None:
        return [glob]
    return [glob[: found.start()] + text + glob[found.end() :] for text in found[1].split(",")]


def flaw(pattern: str) -> str:
    """Why `pattern` is no glob, or cannot be written in a plan; the empty string where nothing is wrong."""
    if not pattern:
        return "it is empty"
    if len(pattern) > MAX_LENGTH:
        return f"it is longer than {MAX_LENGTH} characters"
    if set(pattern) & set('"\r\n'):
        return "a name has no quote and no line break"
    try:
        expanded = expand(pattern)
    except ValueError as error:
        return str(error)
    if any(brace in glob for glob in expanded for brace in "{}"):
        return "a brace has no partner"
    if any("[" in _SET.sub("", glob) for glob in expanded):
        return 'a "[" has no "]"'
    return ""


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(translate(glob)) for glob in expand(pattern))


def matches(pattern: str, name: str) -> bool:
    """Whether the glob matches the whole of `name`."""
    return any(glob.match(name) for glob in _compiled(pattern))


def match(pattern: str, names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that the glob matches, in their order.

    >>> match("*.{q,k}_proj", ["h.0.q_proj", "h.0.v_proj"])
    ('h.0.q_proj',)
    """
    return tuple(name for name in names if matches(pattern, name))


def _generic(name: str) -> str:
    """A name with `*` for each of its numbers."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def nearest_patterns(pattern: str, names: Iterable[str], count: int = 3) -> tuple[str, ...]:
    """At most `count` patterns like `pattern` that do match, found by comparing the ends of names of equal depth.

    >>> nearest_patterns("*.q_prj", ["model.layers.0.q_proj", "model.layers.1.q_proj", "model.norm"])
    ('*.q_proj',)
    """
    known = tuple(dict.fromkeys(names))
    found: dict[str, None] = {}
    for glob in expand(pattern)[:16]:
        wanted = glob.lstrip("*.")
        depth = wanted.count(".") + 1
        named = dict.fromkeys(_generic(name) if "*" in wanted else name for name in known)
        tails = {".".join(name.split(".")[-depth:]): name for name in named}
        for tail in get_close_matches(wanted, tails, n=count, cutoff=0.6):
            found[tail if tails[tail] == tail else f"*.{tail}"] = None
    return tuple(found)[:count]
