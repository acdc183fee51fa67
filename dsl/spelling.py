"""What a misspelt word was meant to be, and how words are listed in a message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word most like `word`, whatever its case; None where none is like it.

    >>> nearest("Colums", ["columns", "rows"])
    'columns'
    """
    by_case = {name.lower(): name for name in known}
    found = get_close_matches(word.lower(), by_case, n=1, cutoff=cutoff)
    return by_case[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The question that offers the nearest known word, or the empty string."""
    found = nearest(word, known)
    return f'did you mean "{found}"?' if found else ""


def listed(words: Sequence[str], last: str = "or") -> str:
    """The words as a sentence has them.

    >>> listed(["columns", "rows", "vocab"])
    'columns, rows or vocab'
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def range_text(rank: int) -> str:
    """The numbers that a dim of a tensor of `rank` dims can have, as a sentence has them.

    >>> range_text(2)
    '-2 to 1'
    """
    return f"{-rank} to {rank - 1}" if rank else "no dim at all"


def shape_text(shape: Sequence[int]) -> str:
    """A shape as a message shows it.

    >>> shape_text((768,))
    '(768)'
    """
    return f"({', '.join(str(extent) for extent in shape)})"


def shortened(text: str, length: int = 60) -> str:
    """The text as a message quotes it: at most `length` characters.

    >>> shortened("abcdefgh", 6)
    'abc...'
    """
    return text if len(text) <= length else f"{text[: length - 3]}..."
