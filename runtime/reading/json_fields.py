"""Checked reading of untrusted JSON: every field's type is checked, and an error names the field by its path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
_ALL_STRINGS, _ALL_INTEGERS = frozenset({str}), frozenset({int})


class Malformed(ValueError):
    """A value that does not follow the format; the message starts with its path in the file."""


class Fields:
    """One JSON object, read field by field."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, Mapping):
            raise Malformed(f"{path}: expected an object, found {type(value).__name__}")
        self._values = value
        self.path = path

    def raw(self, key: str) -> object:
        """The value of a key that must exist, unchecked."""
        if key not in self._values:
            raise Malformed(f'{self.path}: "{key}" is missing')
        return self._values[key]

    def string(self, key: str) -> str:
        """A string."""
        return self._typed(key, str, "a string")

    def string_or(self, key: str, default: str) -> str:
        """A string, or `default` where the key is missing."""
        return self.string(key) if key in self._values else default

    def integer(self, key: str) -> int:
        """An integer."""
        return _integer(self.raw(key), f"{self.path}.{key}")

    def integer_or_null(self, key: str) -> int | None:
        """An integer, or null."""
        return None if self.raw(key) is None else self.integer(key)

    def boolean(self, key: str) -> bool:
        """A boolean."""
        return self._typed(key, bool, "true or false")

    def boolean_or(self, key: str, default: bool) -> bool:
        """A boolean, or `default` where the key is missing."""
        return self.boolean(key) if key in self._values else default

    def mapping(self, key: str) -> dict[str, object]:
        """An object whose values are read by the caller."""
        return {str(name): value for name, value in self._typed(key, dict, "an object").items()}

    def mapping_or(self, key: str, default: Mapping[str, object]) -> dict[str, object]:
        """As `mapping`, or `default` where the key is missing."""
        return self.mapping(key) if key in self._values else dict(default)

    def list_of(self, key: str, read: Callable[[object, str], T]) -> tuple[T, ...]:
        """A list, every element read by `read(value, path)`."""
        values = self._typed(key, list, "a list")
        return tuple(read(value, f"{self.path}.{key}[{index}]") for index, value in enumerate(values))

    def list_of_or(self, key: str, read: Callable[[object, str], T], default: tuple[T, ...]) -> tuple[T, ...]:
        """As `list_of`, or `default` where the key is missing."""
        return self.list_of(key, read) if key in self._values else default

    def optional(self, key: str, read: Callable[[object, str], T]) -> T | None:
        """The result of `read(value, path)`; None where the value is null or missing."""
        value = self._values.get(key)
        return None if value is None else read(value, f"{self.path}.{key}")

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        return self._plain(key, _ALL_STRINGS) or self.list_of(key, _string)

    def strings_or(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        """A list of strings, or `default` where the key is missing."""
        return self.list_of_or(key, _string, default)

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of integers."""
        return self._plain(key, _ALL_INTEGERS) or self.list_of(key, _integer)

    def optional_integers(self, key: str) -> tuple[int, ...] | None:
        """A list of integers, or None where it is null or missing."""
        return None if self._values.get(key) is None else self.integers(key)

    def integers_or(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list of integers, or `default` where the key is missing."""
        return self.list_of_or(key, _integer, default)

    def optional_integer(self, key: str) -> int | None:
        """An integer; None where it is null or missing."""
        return None if self._values.get(key) is None else self.integer(key)

    def integers_or_nulls_or(self, key: str, default: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """As `integers_or_nulls`, or `default` where the key is missing."""
        return self.integers_or_nulls(key) if key in self._values else default

    def integers_or_nulls(self, key: str) -> tuple[int | None, ...]:
        """A list of integers and nulls."""
        return self._plain(key, _ALL_INTEGERS) or self.list_of(key, _integer_or_null)

    def _plain(self, key: str, kinds: frozenset[type]) -> tuple[Any, ...]:
        """A list whose elements all have one of these types; empty where one has not, which is then to be named."""
        value = self.raw(key)
        return tuple(value) if isinstance(value, list) and kinds.issuperset(map(type, value)) else ()

    def _typed(self, key: str, kind: type[T], name: str) -> T:
        value = self.raw(key)
        if not isinstance(value, kind):
            raise Malformed(f"{self.path}.{key}: expected {name}, found {value!r:.60}")
        return value


def _integer_or_null(value: object, path: str) -> int | None:
    return None if value is None else _integer(value, path)


def _string(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f"{path}: expected a string, found {value!r:.60}")
    return value


def _integer(value: object, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise Malformed(f"{path}: expected an integer, found {value!r:.60}")
    return value
