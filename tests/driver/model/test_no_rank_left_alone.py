"""Whatever one process does that the others do not: all end, with one diagnosis that names it and what it did."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ...forked_ranks import Outcome, run_ranks
from . import differing_ranks
from .differing_ranks import ODD

TIMEOUT_S = 2.0
_FOREIGN = re.compile(r"gloo|\.cc:|127\.0\.0\.1|Traceback|c10d")
"""What an error of torch's own has in it."""

DIFFERENCES = [
    ("shape", "tp=2", "E0360", r'rank 1 differs in call 6 \(forward of Net\): input "x" \[8, 6\].*rank 0: .*\[4, 6\]'),
    ("known eval", "dp=2", "E0360", r"rank 1 differs in call 9 \(forward of Net\): mode eval\(\); .* mode train\(\)"),
    ("end", "tp=2", "E0350", r"rank 1 has ended after its call 5 \(backward\); rank 0 waited for it in its call 6"),
]
SLOW = [
    ("save", "tp=2", "E0360", r"rank 1 differs in call 6: save_checkpoint; on rank 0: forward of Net"),
    ("late", "tp=2", "E0322", r"rank 0 waited 2 s in instruction .* for rank 1"),
    ("clip", "tp=2", "E0360", r"rank 1 differs in call 6: clip_grad_norm_; on rank 0: forward of Net"),
    ("eval", "dp=2", "E0360", r"rank 1 differs in call 6 \(forward of Net\): mode eval\(\); on rank 0: mode train\(\)"),
    ("eval", "dp=2, tp=2", "E0360", r"rank 1 differs in call 6 .*: mode eval\(\); on ranks 0, 2, 3: mode train\(\)"),
    ("no_sync", "dp=2", "E0360", r"rank 1 differs in call 6 \(forward of Net\): no_sync inside; .*: no_sync outside"),
    ("frozen", "dp=2", "E0360", r"rank 1 differs in call 6 \(forward of Net\): frozen parameters 1; .* parameters 0"),
    ("full_tensor", "tp=2", "E0360", r"rank 1 differs in call 6: full_tensor of .*; on rank 0: forward of Net"),
    ("kill", "tp=2", "E0350", r"rank 1 is gone .*; rank 0 waited for it in instruction"),
    (
        "raise",
        "tp=2",
        "E0323",
        r"rank 1 failed in its call 6 \(forward of Net\) before it communicated: .*cannot",
    ),
    ("fails before its first step", "tp=2", "E0361", r"this process waited 2 s for rank 1 to join"),
]


def outcomes(kind: str, mesh: str, folder: Path) -> list[Outcome]:
    size = 4 if "," in mesh else 2
    return run_ranks(differing_ranks.differs, size, kind, mesh, str(folder), timeout_s=TIMEOUT_S)


@pytest.mark.parametrize(
    ("kind", "mesh", "code", "words"),
    [*DIFFERENCES, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)],
    ids=[f"{each[0]}-{each[1]}" for each in (*DIFFERENCES, *SLOW)],
)
def test_all_ranks_end_with_one_diagnosis_of_the_rank_that_differs(
    kind: str, mesh: str, code: str, words: str, tmp_path: Path
) -> None:
    ranks = outcomes(kind, mesh, tmp_path)
    waiting = [rank for rank in ranks if rank.rank != ODD]
    assert {rank.code for rank in waiting} == {code}, ranks
    assert len({rank.message for rank in waiting}) == 1
    assert re.search(words, waiting[0].message), waiting[0].text
    if code == "E0360":
        assert ranks[ODD].message == waiting[0].message
    for rank in ranks:
        assert not _FOREIGN.search(rank.text + rank.printed) or rank.code == "raw"
        assert rank.exit_code in (0, 1, -9) and rank.text not in ("it hung",)
    assert list(tmp_path.glob("*")) == []


def test_a_mistake_that_all_ranks_make_can_be_caught_by_all() -> None:
    first, second = run_ranks(differing_ranks.recovers, 2, timeout_s=TIMEOUT_S)
    assert first.value == second.value
    assert first.value[0] == first.value[2] == "E0210"


def test_what_the_writer_cannot_write_no_rank_has_saved_and_all_go_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    ranks = run_ranks(differing_ranks.saves, 2, str(tmp_path), True, timeout_s=TIMEOUT_S)
    for rank in ranks:
        said, goes_on, left = rank.value
        assert said.startswith("E0508:") and "cannot be written: " in said, rank
        assert goes_on and left == ["file", "other"]


def test_a_disk_that_is_full_for_one_rank_is_an_error_of_all_with_that_rank_and_all_go_on(tmp_path: Path) -> None:
    ranks = run_ranks(differing_ranks.saves_on_a_full_disk, 2, str(tmp_path), timeout_s=TIMEOUT_S)
    messages = {rank.value[0] for rank in ranks}
    assert len(messages) == 1
    [message] = messages
    assert message.startswith("E0508") and "rank 1: " in message
    assert [rank.value[1:] for rank in ranks] == [[[], ["last"]]] * 2


def test_a_process_forked_from_a_rank_is_told_that_it_is_none() -> None:
    ranks = run_ranks(differing_ranks.forks, 2, timeout_s=TIMEOUT_S)
    assert [rank.value for rank in ranks] == [["E0362", True]] * 2
