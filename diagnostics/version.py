"""The version of Stretto, as programs, errors and `stretto --version` state it."""

import time

__version__ = "0.1.0"

LOADED_AT = time.time()
"""When this process loaded Stretto (seconds since the epoch): it may not know of sources that are newer."""
