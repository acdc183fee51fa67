"""Control characters of names and paths never reach the terminal: they could move its cursor, or hide what was said."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from stretto.diagnostics import Span, StrettoError, printable
from stretto.driver.text import console
from stretto.runtime.program.records import Location
from stretto.runtime.prover import Counterexample, Place, Verdict

ROOT = Path(__file__).parents[3]
CLEAR, BACKWARDS = "\x1b[2J\x1b]0;title\x07", "\u202etxt.exe"
HOSTILE = f"layers.{CLEAR}\r\x08{BACKWARDS}\x9b31m"


def is_safe(text: str) -> bool:
    return all(sign in "\n\t" or sign.isprintable() for sign in text)


def test_each_control_character_is_shown_as_an_escape() -> None:
    for number in (*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x2028, 0xD800):
        shown = printable(f"a{chr(number)}b")
        assert is_safe(shown) and (number in (9, 10) or shown.startswith("a\\")), hex(number)
    assert printable("größe → 中文 🎵\tb\n") == "größe → 中文 🎵\tb\n"


def test_an_error_shows_no_control_characters_wherever_they_stand() -> None:
    span = Span(HOSTILE, 1, 1, 3, HOSTILE)
    error = StrettoError("E0000", HOSTILE, span=span, expected=HOSTILE, notes=((HOSTILE, span),), help=HOSTILE)
    assert is_safe(error.render()) and is_safe(str(error)) and "\\x1b[2J" in str(error)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_results_and_notes_show_no_control_characters(
    is_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")
    console.say(HOSTILE)
    console.note(HOSTILE)
    console.table((HOSTILE, "b"), [(HOSTILE, HOSTILE)])
    console.heading(HOSTILE)
    place = Place((0,), HOSTILE, 0, HOSTILE, location=Location(HOSTILE, 3, HOSTILE))
    console.say(Verdict(Counterexample("E0706", HOSTILE, (place,))).render())
    written = capsys.readouterr()
    assert "layers" in written.out and "layers" in written.err
    own = written.out.replace("\x1b[1m", "").replace("\x1b[0m", "")  # headings are bold
    assert is_safe(own) and is_safe(written.err)


def test_commands_write_through_the_console_alone() -> None:
    writers = {"cli.py", "driver/text/console.py", "driver/text/phases.py", "driver/text/text_files.py"}
    for file in [ROOT / "cli.py", *(ROOT / "driver").rglob("*.py")]:
        name = str(file.relative_to(ROOT))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                is_write = called == "print" or called in ("sys.stdout.write", "sys.stderr.write")
                assert not is_write or name in writers, f"{name}:{node.lineno} writes to the terminal itself"
