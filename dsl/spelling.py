"""Words in messages: "did you mean", lists, ranges, shapes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word most similar to `word`, ignoring case; None if none is similar.

    >>> nearest("Colums", ["columns", "rows"])
    'columns'
    """
    by_case = {name.lower(): name for name in known}
    closest = get_close_matches(word.lower(), by_case, n=1, cutoff=cutoff)
    return by_case[closest[0]] if closest else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A help with the nearest known word; empty if none is similar."""
    closest = nearest(word, known)
    return f'did you mean "{closest}"?' if closest else ""


def similar_path(path: str, suffix: str = "") -> str:
    """A help about a file that cannot be read: a similar name in its folder, of this suffix if there is one.

    Without one: that there is no such folder, or what a path counts from; empty where the path itself exists.
    """
    folder, name = os.path.split(path)
    try:
        beside = sorted(os.listdir(folder or "."))
    except (OSError, ValueError):
        return f'there is no folder "{shortened(folder)}"' if folder else ""
    closest = nearest(name, [entry for entry in beside if entry.endswith(suffix)]) or nearest(name, beside)
    if closest and closest != name:
        return f'did you mean "{os.path.join(folder, closest)}"?'
    return "" if closest else "a relative path counts from the working directory"


def listed(words: Sequence[str], last: str = "or") -> str:
    """The words as a list in a sentence.

    >>> listed(["columns", "rows", "vocab"])
    'columns, rows or vocab'
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def range_text(rank: int) -> str:
    """The valid dims of a tensor of `rank` dims, in words.

    >>> range_text(2)
    '-2 to 1'
    """
    return f"{-rank} to {rank - 1}" if rank else "no dim at all"


def shape_text(shape: Sequence[int]) -> str:
    """A shape in messages.

    >>> shape_text((768,))
    '(768)'
    """
    return f"({', '.join(str(extent) for extent in shape)})"


def shortened(text: str, length: int = 60) -> str:
    """The text cut to at most `length` characters, as messages quote it.

    >>> shortened("abcdefgh", 6)
    'abc...'
    """
    return text if len(text) <= length else f"{text[: length - 3]}..."


_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_BYTES = re.compile(r"(?P<number>[0-9]{1,12})(?P<unit>[KMG]?B)")


def byte_count(text: str) -> int | None:
    """The bytes that a size with a unit means; None for another text.

    >>> byte_count("25MB"), byte_count("25 MB")
    (25000000, None)
    """
    found = _BYTES.fullmatch(text)
    return int(found["number"]) * _UNITS[found["unit"]] if found else None


def bytes_text(size: int) -> str:
    """The size with the largest unit that divides it.

    >>> bytes_text(25_000_000), bytes_text(1500)
    ('25MB', '1500B')
    """
    unit = max((unit for unit in _UNITS if size % _UNITS[unit] == 0), key=_UNITS.__getitem__)
    return f"{size // _UNITS[unit]}{unit}"
