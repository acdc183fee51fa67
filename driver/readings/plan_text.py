"""Read the text of a plan that `dsl/` has accepted, without `dsl/`: statements as words, and what these say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_TOKEN = re.compile(r'"[^"\n]*"|#[^\n]*|\n|[-\w.+]+|[(){},=]')
_DATA = "dp"
"""Axes of this name shard the batch, unless a statement shards inputs over one of them."""
PARAMETERS, STORED, INPUTS, BUFFERS, EXPERTS = "parameters", "stored", "inputs", "buffers", "experts"
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Sharding:
    """A `shard`, `store`, `zero` or `experts` statement."""

    subject: str
    """parameters, stored (of `store` and `zero`), inputs, buffers, activations or experts."""
    patterns: tuple[str, ...]
    role: str
    """columns, rows, vocab, tokens, batch, whole, dim, or zero, which chooses a dim."""
    number: int
    """Of a `dim`."""
    axes: tuple[str, ...]
    """Axes of the mesh, outermost first."""
    least_bytes: int = 0
    """Smaller parameters stay whole under `zero`."""
    within: tuple[str, ...] = ()
    """The axes of one node under `zero`, outermost first."""

    def names(self, name: str) -> bool:
        """Whether a pattern is of this name."""
        return any(covers(pattern, name) for pattern in self.patterns)

    def names_list(self, name: str) -> bool:
        """Whether a pattern is of a list of modules, or of all inside it, that has a parameter of this name."""
        lists = [name[: match.start()] for match in re.finditer(r"\.[0-9]+(?=\.)", name)]
        patterns = {*self.patterns, *(pattern[:-2] for pattern in self.patterns if pattern.endswith(".*"))}
        return any(covers(pattern, each) for pattern in patterns for each in lists)


@dataclass(frozen=True)
class Statement:
    """A statement in its parts."""

    words: tuple[str, ...]
    """Those behind its keyword that stand in no braces, without commas and globs."""
    patterns: tuple[str, ...]
    """Its globs, but for those of items."""
    axes: tuple[str, ...]
    """Those of the mesh that it is over, outermost first."""
    items: Mapping[str, Sequence[str]]
    """The values of each item in its braces."""


@dataclass(frozen=True)
class PlanText:
    """The statements of a plan."""

    statements: Sequence[Sequence[str]]
    """Their words, the first of which says what a statement is."""

    @staticmethod
    def of(text: str) -> PlanText:
        """Raises nothing for a plan that was parsed before."""
        return PlanText([*_statements(text)])

    @property
    def mesh(self) -> tuple[tuple[str, int], ...]:
        """Axes and sizes in their order."""
        [words] = self._of("mesh")
        items = [word for word in words if word not in ("(", ")", "=", ",")]
        return tuple((name, int(size)) for name, size in zip(items[::2], items[1::2], strict=True))

    @property
    def precision(self) -> Mapping[str, str]:
        """Formats by item."""
        words = next(self._of("precision"), ["{", "}"])[1:-1]
        return dict(zip(words[::2], words[1::2], strict=True))

    @property
    def stored_reduce(self) -> str | None:
        """The format that `zero` reduces gradients in."""
        return next((_items(words[1:])["reduce"][0] for words in self._of("zero") if "reduce" in words), None)

    @property
    def pipeline(self) -> Mapping[str, Sequence[str]]:
        """The values of each item, the axis as "over"; empty without a pipeline."""
        return _items(next(self._of("pipeline"), []))

    @property
    def attention(self) -> Sequence[tuple[tuple[str, ...], str]]:
        """The axes and the method of each statement about attention."""
        stated = [_items(words) for words in self._of("attention")]
        axes = [tuple(axis for name in items["over"] for axis in self._axes_of(name)) for items in stated]
        return [(each, items["method"][0]) for each, items in zip(axes, stated, strict=True)]

    @property
    def overlap(self) -> Mapping[str, Sequence[str]]:
        """The values of each item of `overlap`; empty without the statement."""
        return _items(next(self._of("overlap"), []))

    @property
    def zero(self) -> list[tuple[str, Mapping[str, Sequence[str]]]]:
        """The level of each `zero` statement, and the values of its items."""
        return [(words[0], _items(words[1:])) for words in self._of("zero")]

    @property
    def memory_caps(self) -> Mapping[str, int]:
        """By statement, the bytes that a rank may need."""
        items = {kind: _items(words) for kind in ("recompute", "overlap") for words in self._of(kind)}
        stated = {kind: each["memory"][0] for kind, each in items.items() if "memory" in each}
        return {kind: self.bytes_of(text) for kind, text in stated.items() if not text.startswith("+")}

    @staticmethod
    def bytes_of(text: str) -> int:
        """The bytes of a quantity.

        >>> PlanText.bytes_of("25MB")
        25000000
        """
        [(number, unit)] = re.findall(r"([0-9]+)([A-Z]+)", text)
        return int(number) * _BYTES[unit]

    @property
    def recomputed(self) -> list[tuple[tuple[str, ...], bool]]:
        """The globs of each `recompute` statement that computes all of a module's inside again.

        Also whether its collectives run again.
        """
        return [
            (tuple(word[1:-1] for word in words if word.startswith('"')), "again" in words)
            for words in self._of("recompute")
            if "except" not in words
        ]

    @property
    def split(self) -> list[tuple[str, int, Mapping[str, Sequence[str]]]]:
        """Of each `split tokens` and `split batch`: the subject, the number, and the values of each item."""
        words = [each for each in self._of("split") if each[0] != "loss"]
        return [(each[0], int(each[2]), _items(each[3:])) for each in words]

    def capacity(self, name: str) -> float | None:
        """The capacity of the last `experts` statement that names a parameter, or its owner; None where it has none."""
        stated = [words for words in self.statements if words[0] == "experts"]
        for words, statement in zip(reversed(stated), reversed(self.shardings(EXPERTS)), strict=True):
            if statement.names(name) or statement.names(name.rpartition(".")[0]):
                start = words.index("{") if "{" in words else len(words)
                [number] = _items(words[start:]).get("capacity", ["none"])
                return None if number == "none" else float(number)
        return None

    def stated(self, kind: str) -> list[Statement]:
        """The statements that begin with a keyword, in their order."""
        return [self._parts(words) for words in self._of(kind)]

    def axes_of_all(self, names: Sequence[str]) -> tuple[str, ...]:
        """The axes of the mesh that names stand for."""
        return tuple(axis for name in names for axis in self._axes_of(name))

    def _parts(self, words: Sequence[str]) -> Statement:
        start = words.index("{") if "{" in words else len(words)
        before = [word for word in words[:start] if word != ","]
        axes = before[before.index("over") + 1 :] if "over" in before else []
        return Statement(
            tuple(word for word in before if not word.startswith('"')),
            tuple(word[1:-1] for word in before if word.startswith('"')),
            tuple(axis for name in axes for axis in self._axes_of(name)),
            _items(words[start:]),
        )

    def shardings(self, subject: str) -> list[Sharding]:
        """The statements about one subject in their order; of inputs, first the implied one."""
        written = [each for words in self.statements if (each := self._sharding(words)) and each.subject == subject]
        axes = self._axes_of(_DATA)
        if subject != INPUTS or not axes or any(axis in axes for each in written for axis in each.axes):
            return written
        return [Sharding(INPUTS, (), "batch", 0, axes), *written]

    def _sharding(self, words: Sequence[str]) -> Sharding | None:
        if words[0] == "zero":
            items = _items(words[2:])
            axes, within = (
                tuple(axis for name in items.get(item, ()) for axis in self._axes_of(name))
                for item in ("over", "within")
            )
            least = self.bytes_of(items["from"][0]) if "from" in items else 0
            patterns = tuple(pattern[1:-1] for pattern in items.get("only", ['"*"']))
            return Sharding(STORED, patterns, "zero", 0, axes, least, within)
        if words[0] == "experts":
            start = words.index("over")
            end = words.index("{") if "{" in words else len(words)
            names = (word for word in words[start + 1 : end] if word != ",")
            patterns = tuple(word[1:-1] for word in words[1:start] if word != ",")
            return Sharding(EXPERTS, patterns, "dim", 0, tuple(axis for n in names for axis in self._axes_of(n)))
        if words[0] not in ("shard", "store"):
            return None
        patterns = tuple(word[1:-1] for word in words if word.startswith('"'))
        plain = [word for word in words[1:] if word != "," and not word.startswith('"')]
        subject = STORED if words[0] == "store" else PARAMETERS if words[1].startswith('"') else plain.pop(0)
        role = plain.pop(0)
        number = int(plain.pop(0)) if role == "dim" else 0
        axes = tuple(axis for name in plain[1:] for axis in self._axes_of(name))
        return Sharding(subject, patterns, role, number, axes)

    def _axes_of(self, name: str) -> tuple[str, ...]:
        """The axes of the mesh that a name stands for."""
        for words in self._of("axes"):
            if words[0] == name:
                return tuple(word for word in words[2:] if word != ",")
        return (name,) if name in dict(self.mesh) else ()

    def _of(self, kind: str) -> Iterator[Sequence[str]]:
        return (words[1:] for words in self.statements if words[0] == kind)


def _items(words: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """By the word before them: values with commas between them."""
    items: dict[str, list[str]] = {}
    key = before = ""
    for word in words:
        if word in ("{", "}", ","):
            before = "," if word == "," else ""
            continue
        if before in (key, ",") and key:
            items[key].append(word)
        else:
            key = word
            items[key] = []
        before = word
    return items


def _statements(text: str) -> Iterator[Sequence[str]]:
    words: list[str] = []
    depth = 0
    for token in _TOKEN.findall(text + "\n"):
        if token == "\n":
            if words and not depth and words[-1] != ",":
                yield words
                words = []
        elif not token.startswith("#"):
            depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(token, 0)
            words.append(token)


def covers(pattern: str, name: str) -> bool:
    """Whether a glob is of a whole name.

    >>> covers("*.{q,k}_proj", "layers.0.k_proj"), covers("[!a]?", "ab")
    (True, False)
    """
    return re.fullmatch("".join(_expressions(pattern)), name) is not None


def _expressions(pattern: str) -> Iterator[str]:
    """A glob as a regular expression, piece by piece; braces may be nested."""
    depth = position = 0
    while position < len(pattern):
        character = pattern[position]
        end = pattern.find("]", position + 2) if character == "[" else -1
        if end > 0:
            inside = pattern[position + 1 : end].replace("\\", "\\\\")
            yield f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
            position = end
        elif character in "{}":
            depth += 1 if character == "{" else -1
            yield "(?:" if character == "{" else ")"
        elif character == "," and depth:
            yield "|"
        else:
            yield {"*": ".*", "?": "."}.get(character, re.escape(character))
        position += 1
