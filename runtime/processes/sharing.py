"""Work of one process for all, such as a compile: it tells the others the result, or the error that it raised."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable

from .calls import CallLog
from .watchdog import Store, Watchdog

WORKER = 0
"""The rank that works."""
_PIECE = 1 << 22
"""Characters of one value in the store, which takes at most 8 MiB."""
_WHERE = f"waiting for rank {WORKER} to compile"


class Sharing:
    """The shared work of one process's run. All processes make the same calls of `agrees`."""

    def __init__(
        self, rank: int, store: Store, watchdog: Watchdog, compare: Callable[[bytes, str], list[bytes]], calls: CallLog
    ) -> None:
        self.is_worker = rank == WORKER
        self._store = store
        self._watchdog = watchdog
        self._compare = compare
        self._calls = calls
        self._turns = 0

    def agrees(self, key: bytes) -> bool:
        """Whether all processes have the same key (32 bytes), so that one of them can work for all.

        Then the worker calls `tell` once, also if it fails, and the others call `told`.
        """
        keys = self._compare(key, "comparing what is compiled")
        self._turns += 1
        return len(set(keys)) == 1

    def tell(self, data: bytes) -> None:
        """Give the others the result."""
        text = base64.b85encode(zlib.compress(data, 1)).decode()
        pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        for number, piece in enumerate(pieces):
            self._store.set(f"{self._turn}/{number}", piece)
        self._store.set(self._turn, str(len(pieces)))

    def told(self) -> bytes:
        """The result, as soon as the worker has it: it may take longer than a collective as long as it is alive.

        Raises CollectiveError where the worker has failed without a result, or is dead.
        """
        self._calls.communicate()
        count = int(self._watchdog.wait_for_key(self._turn, WORKER, _WHERE))
        text = b"".join([self._store.get(f"{self._turn}/{number}") for number in range(count)])
        self._calls.agree()
        return zlib.decompress(base64.b85decode(text))

    @property
    def _turn(self) -> str:
        return f"stretto/shared/{self._turns}"
