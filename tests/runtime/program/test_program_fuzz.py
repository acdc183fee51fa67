"""Whatever a program folder holds, it is loaded, explained and proved, or refused: no crash, no hang, no traceback."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stretto.diagnostics import StrettoError
from stretto.driver.report.explain import explain
from stretto.runtime import Program, ProgramError
from stretto.runtime.program.folder import manifest_hash
from stretto.runtime.prover import prove

from ..tiny_programs import linear

FILES = ("manifest.json", "program.json", "remarks.json", "reference.json")
DEEP = "[" * 100_000
BAD_BYTES = (b"\xff\xfe\x00", b"", b"\x00", DEEP.encode(), b'{"a":' * 50_000, b"9" * 10_000, b"[1, NaN]")

odd = st.sampled_from(
    (None, True, -1, 0, 3, 2**31, 2**63, 10**30, -(10**30), 1.5, float("inf"), "", "x", "main", "tp", "\ud800",
     "a" * 9999, [], {}, [[]], [0], [0, 0], {"slot": 0}, {"slot": -1}, {"dtype": "float99"}, {"": ""})
)  # fmt: skip


@cache
def texts() -> dict[str, str]:
    """The files of a small program."""
    with tempfile.TemporaryDirectory() as top:
        linear().save(Path(top) / "program")
        return {path.name: path.read_text() for path in (Path(top) / "program").iterdir()}


@contextmanager
def folder_of(contents: dict[str, bytes]) -> Iterator[Path]:
    top = Path(tempfile.mkdtemp())
    try:
        for name, content in contents.items():
            (top / name).write_bytes(content)
        yield top
    finally:
        shutil.rmtree(top)


def sealed(changed: dict[str, bytes]) -> dict[str, bytes]:
    """The files with their hashes put right, so that what is behind the hashes is read too."""
    files = {name: text.encode() for name, text in texts().items()} | changed
    manifest = json.loads(texts()["manifest.json"])
    if "manifest.json" in changed:
        manifest = json.loads(changed["manifest.json"])
    if not isinstance(manifest, dict):
        return files
    sums = manifest.get("files")
    if isinstance(sums, dict):
        sums |= {name: hashlib.sha256(files[name]).hexdigest() for name in sums if name in files}
    manifest["hash"] = manifest_hash(manifest)
    return files | {"manifest.json": json.dumps(manifest).encode()}


def used(folder: Path) -> None:
    """What commands do with a folder, short of running it."""
    try:
        program = Program.load(folder)
        _ = program.single_device
        explain(program).to_json()
        prove(program)
    except StrettoError as error:
        error.render().encode("utf-8", "replace")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from places(child, (*path, key))


def edited(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy in which `new` stands at a path; without what stands there where `new` is Ellipsis."""
    if not path:
        return None if new is ... else new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and new is ...:
        del copy[path[0]]
    else:
        copy[path[0]] = edited(value[path[0]], path[1:], new)
    return copy


@st.composite
def mutants(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file of the program with one to three of its values replaced, removed, or swapped for another of its values."""
    name = draw(st.sampled_from(FILES))
    value = json.loads(texts()[name])
    for _ in range(draw(st.integers(1, 3))):
        everywhere = list(places(value))
        path = draw(st.sampled_from(everywhere))
        other = draw(st.sampled_from(everywhere))
        new = draw(odd | st.just(...) | st.just(other))
        if new is other:
            new = value
            for key in other:
                new = new[key]
        value = edited(value, path, new)
    return name, json.dumps(value).encode()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(mutants())
def test_a_file_with_other_values_is_used_or_refused(mutant: tuple[str, bytes]) -> None:
    with folder_of(sealed(dict([mutant]))) as folder:
        used(folder)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(texts())), st.integers(0, 5000), st.binary(max_size=8))
@example("manifest.json", 0, b"\xff")
def test_a_file_with_other_bytes_is_refused(name: str, position: int, new: bytes) -> None:
    content = texts()[name].encode()
    changed = content[: position % len(content)] + new if content else new
    with folder_of({n: t.encode() for n, t in texts().items()} | {name: changed}) as folder:
        if changed == content:
            Program.load(folder)
        else:
            with pytest.raises(ProgramError):
                Program.load(folder)


@pytest.mark.parametrize("content", BAD_BYTES, ids=lambda content: repr(content[:6]))
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_json_object_is_refused_with_the_file_s_name(name: str, content: bytes) -> None:
    changed = {name: content}
    files = {n: t.encode() for n, t in texts().items()} | changed if name == "manifest.json" else sealed(changed)
    with folder_of(files) as folder, pytest.raises(ProgramError) as caught:
        program = Program.load(folder)
        _ = program.single_device
        explain(program)
    assert caught.value.code in ("E0301", "E0302", "E0306") and name in str(caught.value)
