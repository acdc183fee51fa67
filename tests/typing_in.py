"""A page of the docs typed in as it stands: its files written, its commands run, what they print compared."""

from __future__ import annotations

import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from filecheck.matcher import Matcher
from filecheck.options import Options
from stretto import cli
from stretto.passes import registry

_BLOCK = re.compile(
    r"(?:^`(?P<file>[\w./-]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A block of code: its language, its text, and the file that the line above it says it is."""

    language: str
    text: str
    file: str | None = None

    def commands(self) -> Iterator[tuple[str, str]]:
        """Each command of a console, and what it should print."""
        for each in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, printed = each.partition("\n")
            yield command, printed


@contextmanager
def working_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder as the working directory, which may be put on PYTHONPATH; afterwards nothing is left of it."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    monkeypatch.undo()
    forget()


def blocks(page: Path, section: str = "") -> list[Block]:
    """The blocks of a page, or of those of its sections whose heading is given, in order."""
    text = page.read_text(encoding="utf-8")
    if section:
        text = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [Block(each["language"], each["text"], each["file"]) for each in _BLOCK.finditer(text)]


def type_in(block: Block, folder: Path) -> None:
    """Write the block's file, or run its commands in the working directory `folder`, and check what they print."""
    if block.file is not None:
        (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
        (folder / block.file).write_text(block.text, encoding="utf-8")
    elif block.language == "sh":
        subprocess.run(["bash", "-euc", block.text], cwd=folder, check=True, timeout=60)
    elif block.language == "console":
        for command, expected in block.commands():
            printed = run(command)
            assert fits(printed, expected), f"$ {command}\n{printed}\n--- the page says\n{expected}"


def run(command: str) -> str:
    """What a command prints, errors included. `stretto` runs in this process, alone or piped into filecheck.

    `$(cat FILE)` stands for a file's text.
    """
    if command == "export PYTHONPATH=$PWD":
        sys.path.insert(0, os.getcwd())
        return ""
    command = re.sub(r"\$\(cat ([\w.]+)\)", lambda found: Path(found[1]).read_text(), command)
    line, _, checked = os.path.expandvars(command).partition(" | filecheck ")
    name, *arguments = shlex.split(line)
    assert name == "stretto", command
    forget()
    printed, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(errors):
        try:
            cli.main(arguments)
        except SystemExit as end:
            errors.write(f"{end.code}\n")
        except Exception as error:  # as a terminal shows it
            errors.write(f"{error}\n")
    if not checked:
        return errors.getvalue() + printed.getvalue()
    Path("printed.mlir").write_text(printed.getvalue())
    failed = Matcher.from_opts(Options(checked, "printed.mlir")).run()
    return errors.getvalue() + ("filecheck failed\n" if failed else "")


def forget() -> None:
    """Let the next command see what another process would: passes of other packages are looked up, and read again."""
    importlib.invalidate_caches()
    registry._others.cache_clear()
    for value in registry._others().values():
        sys.modules.pop(value.partition(":")[0], None)


def fits(printed: str, expected: str) -> bool:
    """Whether what was printed is what is expected; "..." stands for any lines, or for any part of one.

    >>> fits("one\\ntwo\\nthree\\n", "one\\n...\\n"), fits("a.py:12: x\\n", "a.py:...: x\\n"), fits("one\\n", "two\\n")
    (True, True, False)
    """
    lines = expected.splitlines()
    pattern = "".join(
        r"(?:.*\n)*?" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + r"\n" for line in lines
    )
    return re.fullmatch(pattern, "".join(f"{line.rstrip()}\n" for line in printed.splitlines())) is not None
