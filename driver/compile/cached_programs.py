"""The cache as one compile sees it: the program of an equal call is taken out, a new one is kept.

Under several processes one asks the cache and compiles, and the others take its program (`shared_programs.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from ...diagnostics.version import __version__
from ...frontend.capture.capture import warn_of_effects
from ...frontend.forward_facts import NotKeyed
from ...ir.equivalence.integer_ranges import IntegerRange
from ...passes.base import Remark, RemarkKind
from ...runtime.program.arguments import Json
from ...runtime.reading.json_fields import Fields, Malformed
from ..cache.store import CacheEntry, CacheFault
from .cache_key import cache_key
from .new_program import completed, remark_json
from .request import Compiled, CompileRequest, Found
from .shared_programs import SharedPrograms
from .traced_call import TracedCall

_log = logging.getLogger("stretto")
_RANGES, _WHY_NOT, _COMPILATIONS = "ranges", "why_not", "compilations"


class CachedPrograms:
    """The lookup of one call's program. A fault of the cache is one line in the log, and the program is compiled."""

    def __init__(self, request: CompileRequest, traced: TracedCall) -> None:
        self._request = request
        self._traced = traced
        self._store = request.cache
        self._key = ""
        self._not_keyed = ""
        try:
            self._key = cache_key(request, traced) if self._store or request.sharing else ""
        except NotKeyed as error:
            self._not_keyed = str(error)
        self.shared = SharedPrograms(request.sharing, self._key)

    def find(self) -> Compiled | None:
        """The program of an equal call; None where it is to be compiled.

        Raises what the process that compiles has raised.
        """
        told = self.shared.told()
        if told is not None:
            return self._taken(told)
        if self._store is None or not self._key:
            return None
        try:
            entry = self._store.find(self._key)
            if entry is None:
                return None
            taken = self._taken(entry)
        except CacheFault as fault:
            _say(str(fault))
            return None
        except Malformed as error:
            _say(f"an entry of the compile cache was unusable and is compiled again: {error}")
            return None
        self.shared.tell(entry.program, _notes(taken))
        return taken

    def keep(self, compiled: Compiled) -> Compiled:
        """Keep a program that was compiled; returns it, with a remark where it cannot be kept."""
        program = compiled.program
        bare = replace(program, manifest=replace(program.manifest, source={}), initial={})
        self.shared.tell(bare, _notes(compiled))
        if self._store is None:
            return compiled
        if not self._key:
            remark = Remark("compile-cache", RemarkKind.MISSED, f"not cached: {self._not_keyed}")
            listed = program.remarks if isinstance(program.remarks, list | tuple) else ()
            return replace(compiled, program=replace(program, remarks=[*listed, remark_json(remark)]))
        try:
            self._store.keep(self._key, bare, _notes(compiled))
        except CacheFault as fault:
            _say(str(fault))
        return compiled

    def _taken(self, entry: CacheEntry) -> Compiled:
        """Raises Malformed where the notes are not those of `keep`."""
        fields = Fields(entry.notes, "notes")
        if entry.program.manifest.stretto != __version__:
            raise Malformed(f"it is of Stretto {entry.program.manifest.stretto}")
        forward, options = self._traced.forward, self._request.options
        ranges = {name: _range(value) for name, value in fields.mapping(_RANGES).items()}
        program = completed(entry.program, ranges, forward.model, forward.call.buffers, forward.constants, options)
        sizes = None
        if self._request.sizes:
            sizes = Found(program.symbolic, fields.string(_WHY_NOT), fields.integer(_COMPILATIONS))
        warn_of_effects(forward.module, forward.traced.value_reads)
        return Compiled(program, forward.result, ranges, None, (), sizes, is_cached=True)


@cache
def _say(fault: str) -> None:
    """One line, once in a process: a read-only folder is the same for every program."""
    _log.warning("%s", fault)


def _notes(compiled: Compiled) -> Mapping[str, Json]:
    sizes = compiled.sizes or Found(None)
    ranges = {name: [each.high, each.ignored, each.low, *each.named] for name, each in compiled.ranges.items()}
    return {_RANGES: ranges, _WHY_NOT: sizes.why_not, _COMPILATIONS: sizes.compilations}


def _range(value: object) -> IntegerRange:
    match value:
        case [(int() | None) as high, (int() | None) as ignored, int() as low, *named]:
            values = tuple(each for each in named if isinstance(each, int))
            if len(values) == len(named):
                return IntegerRange(high, ignored, low, named=values)
    raise Malformed(f"notes.{_RANGES}: expected [high, ignored, low], found {value!r:.60}")
