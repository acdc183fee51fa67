"""Reading JSON that someone else may have changed: every field is checked, and what is wrong is named by its path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")


class Malformed(ValueError):
    """A value that is not what the format says; the message starts with its path in the file."""


class Fields:
    """One JSON object, read field by field."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, Mapping):
            raise Malformed(f"{path}: expected an object, found {type(value).__name__}")
        self._values = value
        self.path = path

    def raw(self, key: str) -> object:
        """The value as JSON gave it; it must be there."""
        if key not in self._values:
            raise Malformed(f'{self.path}: "{key}" is missing')
        return self._values[key]

    def text(self, key: str) -> str:
        """A string."""
        return self._of(key, str, "a string")

    def text_or(self, key: str, otherwise: str) -> str:
        """A string, or `otherwise` where the key is missing."""
        return self.text(key) if key in self._values else otherwise

    def whole(self, key: str) -> int:
        """An integer."""
        return _whole(self.raw(key), f"{self.path}.{key}")

    def whole_or_none(self, key: str) -> int | None:
        """An integer, or null."""
        return None if self.raw(key) is None else self.whole(key)

    def flag(self, key: str) -> bool:
        """A boolean."""
        return self._of(key, bool, "true or false")

    def flag_or(self, key: str, otherwise: bool) -> bool:
        """A boolean, or `otherwise` where the key is missing."""
        return self.flag(key) if key in self._values else otherwise

    def mapping(self, key: str) -> dict[str, object]:
        """An object whose values are read by the caller."""
        return {str(name): value for name, value in self._of(key, dict, "an object").items()}

    def each(self, key: str, read: Callable[[object, str], T]) -> tuple[T, ...]:
        """A list, every element read by `read(value, path)`."""
        values = self._of(key, list, "a list")
        return tuple(read(value, f"{self.path}.{key}[{at}]") for at, value in enumerate(values))

    def optional(self, key: str, read: Callable[[object, str], T]) -> T | None:
        """What `read(value, path)` gives; None where the value is null or missing."""
        value = self._values.get(key)
        return None if value is None else read(value, f"{self.path}.{key}")

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        return self.each(key, _text)

    def wholes(self, key: str) -> tuple[int, ...]:
        """A list of integers."""
        return self.each(key, _whole)

    def wholes_where_given(self, key: str) -> tuple[int, ...] | None:
        """A list of integers, or None where it is null or missing."""
        return None if self._values.get(key) is None else self.wholes(key)

    def wholes_or_none(self, key: str) -> tuple[int | None, ...]:
        """A list of integers and nulls."""
        return self.each(key, lambda value, path: None if value is None else _whole(value, path))

    def _of(self, key: str, kind: type[T], name: str) -> T:
        value = self.raw(key)
        if not isinstance(value, kind):
            raise Malformed(f"{self.path}.{key}: expected {name}, found {value!r:.60}")
        return value


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f"{path}: expected a string, found {value!r:.60}")
    return value


def _whole(value: object, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise Malformed(f"{path}: expected an integer, found {value!r:.60}")
    return value
