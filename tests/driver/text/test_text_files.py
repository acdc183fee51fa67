"""Files that commands write: atomically, and in place for pipes and devices."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from stretto.diagnostics import StrettoError
from stretto.driver.text.text_files import write_text


def test_the_target_of_a_link_is_written_and_the_link_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "target.mlir", tmp_path / "link.mlir"
    target.write_text("old")
    link.symlink_to(target.name)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.mlir", "target.mlir"]


def test_a_pipe_is_written_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "module {}")
    reader.join(timeout=10)
    assert read == ["module {}"] and pipe.is_fifo()


@pytest.mark.parametrize("file", ["", "/", ".", "missing/out.mlir"])
def test_a_place_that_holds_no_file_is_refused(file: str) -> None:
    with pytest.raises(StrettoError, match="E0508") as caught:
        write_text(file, "module {}")
    assert f"'{file}' cannot be written" in caught.value.message
