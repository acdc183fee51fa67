"""The `stretto` command: the table of commands, exit codes, and how errors are shown.

The arguments of each command are in `driver/commands/`, its work in the other rooms of `driver/`.
Exit codes: 0 done, 1 an error or a failed check, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import NoReturn

from . import __version__
from .diagnostics import StrettoError
from .diagnostics.raised_in import raised_in
from .driver.commands import (
    bisect,
    cache,
    compare,
    diff,
    doctor,
    explain,
    opt,
    passes,
    reduce,
    run,
    schedule,
    simulate,
    verify,
    zoo,
)
from .driver.commands import compile as compile_
from .driver.commands.outcome import Command
from .driver.commands.parser import CommandParser, unknown

_INTERRUPTED = 130
_SILENCE_S = 50.0
"""Seconds after which a command that is still at work says so."""
_REPORT = (
    "This is a bug in Stretto, not in your input. Please report it with the lines above, the command, the plan,\n"
    "and the output of `stretto --version`."
)
_COMMANDS: dict[str, Command] = {
    "compile": compile_,
    "run": run,
    "explain": explain,
    "opt": opt,
    "passes": passes,
    "verify": verify,
    "bisect": bisect,
    "reduce": reduce,
    "diff": diff,
    "schedule": schedule,
    "simulate": simulate,
    "compare": compare,
    "zoo": zoo,
    "doctor": doctor,
    "cache": cache,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Wrong usage raises SystemExit(2)."""
    if sys.stdout is None:  # the parent process closed it
        with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stdout(nothing):
            return main(argv)
    parser = _parser()
    _check_command(parser, sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(argv)
    try:
        return _run(arguments)
    except StrettoError as error:
        return _refused(error, arguments)
    except KeyboardInterrupt:
        print("stretto: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of the output closed the pipe
        _discard_output()
        return 0
    except Exception as error:  # raised again, with a note on what to do
        if place := raised_in(error):
            error.add_note(f"Raised by {place}.")
        error.add_note(_REPORT)
        raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stretto", description="Compile a PyTorch model and a plan to a parallel program; run, check, explain it."
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show program's version number and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=CommandParser)
    for name, command in _COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.HELP))
    return parser


def _check_command(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """A usage error that names the nearest command where the first argument is none."""
    if argv and not argv[0].startswith("-") and argv[0] not in _COMMANDS:
        parser.error(unknown(f'unknown command "{argv[0]}" (one of {", ".join(_COMMANDS)})', argv[0], _COMMANDS))


def _run(arguments: argparse.Namespace) -> int:
    with redirect_stdout(sys.stderr), _still_at_work(arguments.command):  # prints of the model's code are no results
        outcome = _COMMANDS[arguments.command].run(arguments)
    with _writing():
        if _wants_json(arguments):
            _print_json(outcome.to_json())
        else:
            outcome.show()
    return outcome.code


@contextmanager
def _still_at_work(command: str) -> Iterator[None]:
    """Inside, a line on stderr tells every `_SILENCE_S` what is done, but where a terminal shows a progress bar."""
    end, start = threading.Event(), time.monotonic()

    def tell() -> None:
        while not end.wait(_SILENCE_S):
            from .driver.text.console import present_work

            what = present_work() or "imports and input"
            line = f"stretto {command}: at work for {time.monotonic() - start:.0f} s: {what}"
            print(line, file=sys.stderr, flush=True)

    teller = threading.Thread(target=tell, name="stretto-still-at-work", daemon=True)
    if not sys.stderr.isatty():
        teller.start()
    try:
        yield
    finally:
        end.set()


def _refused(error: StrettoError, arguments: argparse.Namespace) -> int:
    """Show an error: as text on stderr, and with --json as an object on stdout too."""
    if _wants_json(arguments):
        try:
            with _writing():
                _print_json({"error": error.to_json()})
        except (StrettoError, BrokenPipeError):  # there is stderr
            _discard_output()
    print(error.render(), file=sys.stderr)
    return 1


@contextmanager
def _writing() -> Iterator[None]:
    """Raise E0508 where standard output cannot be written, as on a full disk."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_output()
        raise StrettoError("E0508", f"standard output cannot be written: {error.strerror}") from None


def _discard_output() -> None:
    """Discard buffered and further output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _wants_json(arguments: argparse.Namespace) -> bool:
    return bool(getattr(arguments, "json", False))


def _print_json(value: Mapping[str, object]) -> None:
    print(json.dumps(_finite(value), allow_nan=False, indent=1))


def _finite(value: object) -> object:
    """The value with infinities and NaN as strings, since JSON has none."""
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case Mapping():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value


class _ShowVersion(argparse.Action):
    """As argparse's own, but looks for torch's version only when it is asked for: that takes a tenth of a second."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            needed = f"torch {version('torch')}, python {sys.version.split()[0]}"
        except PackageNotFoundError:
            needed = "no torch"
        print(f"stretto {__version__} ({needed})")
        parser.exit()
