"""What a first call shows of its phases, by where its output goes."""

from __future__ import annotations

import io
import logging
import sys
import threading
import time
import types
from collections.abc import Callable

import pytest
import stretto
import torch
from stretto.driver.text import console, phases
from stretto.driver.text.phases import Display, display_of, phases_shown
from torch import nn


@pytest.fixture(autouse=True)
def no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_work", [""])


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(phases, "sys", types.SimpleNamespace(stderr=stream, modules=sys.modules))
    return stream


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line comes at once."""
    for display in (Display.REPLACED, Display.LOG):
        monkeypatch.setattr(display, "_value_", (0.01, 0.01))


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.usefixtures("soon")
def test_a_log_gets_lines_that_name_the_phase(errors: io.StringIO) -> None:
    with phases_shown("GPT") as begin:
        for phase in ("capture", "passes"):
            begin(phase)
            wait_for(lambda phase=phase: f"stretto: GPT: {phase}, 0 s\n" in errors.getvalue())
    assert "\r" not in errors.getvalue()


@pytest.mark.usefixtures("soon")
def test_a_terminal_gets_one_line_that_is_replaced_and_removed(
    errors: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "isatty", lambda: True)
    with phases_shown("GPT") as begin:
        begin("capture")
        wait_for(lambda: "\rstretto: GPT: capture, 0 s" in errors.getvalue())
        begin("passes")
        wait_for(lambda: "\rstretto: GPT: passes, 0 s " in errors.getvalue())
    assert "\n" not in errors.getvalue()
    last = "stretto: GPT: capture, 0 s"
    assert errors.getvalue().endswith("\r" + " " * len(last) + "\r")


def test_a_short_call_shows_nothing(errors: io.StringIO) -> None:
    with phases_shown("GPT") as begin:
        begin("capture")
    assert errors.getvalue() == ""


def test_a_notebook_is_known_by_its_shell(errors: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert display_of(errors) is Display.REPLACED
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert display_of(errors) is Display.LOG


def test_nothing_is_shown_beside_the_progress_of_a_command_or_without_stderr(
    errors: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert display_of(None) is Display.NONE
    monkeypatch.setattr(console, "_work", ["check"])
    assert display_of(errors) is Display.NONE


@pytest.mark.usefixtures("soon")
def test_a_closed_stderr_fails_no_call(errors: io.StringIO) -> None:
    with phases_shown("GPT", Display.LOG) as begin:
        begin("capture")
        errors.close()
        time.sleep(0.05)
        assert "stretto-phases" in {thread.name for thread in threading.enumerate()}, "it goes on"
    assert "stretto-phases" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.usefixtures("soon")
def test_the_first_call_of_a_compiled_model_names_its_phases(
    errors: io.StringIO, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    named: list[str] = []
    monkeypatch.setattr(phases._Shown, "begin", lambda self, phase: named.append(phase))
    model = stretto.compile(nn.Linear(4, 4), plan="mesh (dp=2)")
    with caplog.at_level(logging.INFO, "stretto"):
        model(torch.ones(2, 4))
    assert named == ["capture", "backward", "convert", "passes", "lower", "start"]
    assert "stretto: Linear: " in errors.getvalue()
    assert "compiled (train)" in caplog.text
