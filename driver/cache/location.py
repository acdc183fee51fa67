"""Where the compile cache is: `STRETTO_CACHE`, else `stretto` in the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "STRETTO_CACHE"
"""A folder for the cache; "0" or "off": no cache; unset or empty: `$XDG_CACHE_HOME/stretto` or `~/.cache/stretto`."""
_OFF = ("0", "off")


def cache_folder() -> Path | None:
    """The folder of the cache, which may not exist yet; None where the cache is off, or the user has no home."""
    chosen = os.environ.get(VARIABLE, "").strip()
    if chosen.lower() in _OFF:
        return None
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the specification: a relative path is ignored
        return Path(base, "stretto")
    home = os.path.expanduser("~")
    return Path(home, ".cache", "stretto") if os.path.isabs(home) else None
