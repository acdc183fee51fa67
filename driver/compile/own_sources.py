"""The state of Stretto and of the packages that it compiles with: a program of another state is another program."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ...diagnostics.version import LOADED_AT, __version__
from ...frontend.forward_facts import NotKeyed

_ROOT = str(Path(__file__).parents[2])
_SUFFIXES = (".py", ".lark", ".txt")
_COMPILED_WITH = ("torch-mlir", "lark", "networkx", "numpy", "scipy", "ortools", "sympy")


@cache
def own_state() -> str:
    """Version, hash of the sources, and versions of packages.

    Raises NotKeyed where a source is newer than this process, which may have loaded it as it was before.
    """
    digest = sha256()
    for path in sorted(_source_files()):
        if os.stat(path).st_mtime >= LOADED_AT:
            raise NotKeyed(f"'{path}' was changed after this process had started")
        with open(path, "rb") as source:
            digest.update(f"{path[len(_ROOT) :]}\0".encode() + source.read() + b"\0")
    return f"{__version__} {digest.hexdigest()} with {', '.join(map(_package, _COMPILED_WITH))}"


def _source_files() -> Iterator[str]:
    """Every file of the package, but for tests and examples. As texts: a `Path` for each takes most of the time."""
    for folder, subfolders, files in os.walk(_ROOT):
        if folder == _ROOT:
            files = [name for name in files if name.endswith(".py")]
            subfolders[:] = [name for name in subfolders if os.path.isfile(f"{folder}/{name}/__init__.py")]
        yield from (f"{folder}/{name}" for name in files if name.endswith(_SUFFIXES))


def _package(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"
