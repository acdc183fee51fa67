"""Where the `stretto` command and `python -m stretto` begin: before anything is imported, so that Ctrl-C is quiet."""

from __future__ import annotations

import sys

_INTERRUPTED = 130


def main() -> int:
    """As `cli.main`; an interrupt while the command is imported ends it as one later does."""
    try:
        from .cli import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("stretto: interrupted\n")
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
