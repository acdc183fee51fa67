"""Pickles read as data: nothing that a pickle names is imported, called or built.

`pickle.load` calls whatever the file names. Here a name becomes a `Name`, a call of it a `Call` that nobody makes, and
the reader of a format decides what it accepts of them. Only the opcodes are known that torch's checkpoints use.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MOST_BYTES = 1 << 28
"""The largest pickle that is read: its values take about ten times as much memory."""


class Damaged(ValueError):
    """A file that is truncated or overwritten."""


class NotData(ValueError):
    """A file that holds more than data, such as the name of a function to call; the message says what."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Call:
    """What a pickle would build by a call, with the state that it would give the result."""

    function: object
    arguments: object
    state: object = None

    def __str__(self) -> str:
        return f"a call of {self.function}" if isinstance(self.function, Name) else "a call of something computed"


@dataclass(frozen=True)
class Persistent:
    """A value outside the pickle, such as the storage of a tensor."""

    key: object


def read_pickle(data: bytes) -> object:
    """The value of a pickle, of plain containers and scalars, `Name`, `Call` and `Persistent`.

    Raises Damaged and NotData.
    """
    if len(data) > MOST_BYTES:
        raise NotData(f"it has {len(data)} bytes, more than {MOST_BYTES}")
    try:
        return _Machine().run(data)
    except (IndexError, KeyError, TypeError, ValueError, UnicodeError, AttributeError) as error:
        if isinstance(error, NotData | Damaged):
            raise
        raise Damaged(str(error)) from None


class _Machine:
    """The stack machine of a pickle."""

    def __init__(self) -> None:
        self._stack: list[object] = []
        self._outer: list[list[object]] = []
        self._memo: dict[object, object] = {}

    def run(self, data: bytes) -> object:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name in _SCALARS:
                self._stack.append(argument)
            elif opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name])
            elif opcode.name in _EMPTY:
                self._stack.append(_EMPTY[opcode.name]())
            elif opcode.name == "STOP":
                return self._stack.pop()
            elif opcode.name in _ACTIONS:
                _ACTIONS[opcode.name](self, argument)
            elif opcode.name not in _IGNORED:
                raise NotData(f"it uses the opcode {opcode.name} at byte {position}")
        raise Damaged("it ends too early")

    def mark(self, _: object) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _marked(self) -> list[object]:
        items, self._stack = self._stack, self._outer.pop()
        return items

    def pop(self, _: object) -> None:
        self._stack.pop()

    def tuple_of(self, size: int) -> None:
        items = [self._stack.pop() for _ in range(size)]
        self._stack.append(tuple(reversed(items)))

    def marked_tuple(self, _: object) -> None:
        items = self._marked()
        self._stack.append(tuple(items))

    def append(self, _: object) -> None:
        item = self._stack.pop()
        self._extend([item])

    def appends(self, _: object) -> None:
        items = self._marked()
        self._extend(items)

    def _extend(self, items: list[object]) -> None:
        match self._stack[-1]:
            case list() as target:
                target.extend(items)
            case set() as target:
                target.update(items)
            case _:
                raise NotData("it extends what is no list")

    def set_item(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key, value])

    def set_items(self, _: object) -> None:
        items = self._marked()
        self._update(items)

    def _update(self, items: list[object]) -> None:
        target = self._stack[-1]
        if isinstance(target, Call) and target.function == Name("collections", "OrderedDict"):
            target.state = target.state if isinstance(target.state, dict) else {}
            target = target.state
        if not isinstance(target, dict):
            raise NotData("it sets items of what is no dict")
        target.update(zip(items[::2], items[1::2], strict=True))

    def name(self, argument: object) -> None:
        module, _, name = str(argument).partition(" ")
        self._stack.append(Name(module, name))

    def stack_name(self, _: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise NotData("it computes a name")
        self._stack.append(Name(module, name))

    def call(self, _: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(Call(function, arguments))

    def build(self, _: object) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if not isinstance(target, Call):
            raise NotData("it gives a state to what no call made")
        target.state = state

    def persistent(self, _: object) -> None:
        self._stack.append(Persistent(self._stack.pop()))

    def get(self, index: object) -> None:
        self._stack.append(self._memo[index])

    def put(self, index: object) -> None:
        self._memo[index] = self._stack[-1]

    def memoize(self, _: object) -> None:
        self._memo[len(self._memo)] = self._stack[-1]


_SCALARS = frozenset({
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "SHORT_BINSTRING",
})  # fmt: skip
_CONSTANTS: Mapping[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: Mapping[str, Callable[[], object]] = {
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set, "EMPTY_TUPLE": tuple,
}  # fmt: skip
_IGNORED = frozenset({"PROTO", "FRAME"})
_ACTIONS: Mapping[str, Callable[[_Machine, object], None]] = {
    "MARK": _Machine.mark, "POP": _Machine.pop,
    "TUPLE": _Machine.marked_tuple,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": _Machine.append, "APPENDS": _Machine.appends, "ADDITEMS": _Machine.appends,
    "SETITEM": _Machine.set_item, "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name, "STACK_GLOBAL": _Machine.stack_name,
    "REDUCE": _Machine.call, "NEWOBJ": _Machine.call, "BUILD": _Machine.build, "BINPERSID": _Machine.persistent,
    "BINGET": _Machine.get, "LONG_BINGET": _Machine.get, "BINPUT": _Machine.put, "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
}  # fmt: skip
