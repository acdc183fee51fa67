"""Remarks of many places alike are one, with a count."""

from stretto.ir.locations import Origin
from stretto.passes.base import RemarkKind
from stretto.passes.counted_remarks import CountedRemarks


def test_places_in_repeated_layers_are_one_with_a_count() -> None:
    remarks = CountedRemarks("fold-layers")
    for layer in range(3):
        remarks.applied("norm", Origin(f"layers.{layer}.norm", "gpt.py", 5))
    remarks.missed("loss left: why", Origin("loss", "gpt.py", 9))
    first, second = remarks.remarks()
    assert (first.kind, first.message, first.origin.module_path) == (RemarkKind.APPLIED, "3 x norm", "layers.*.norm")
    assert (second.kind, second.message) == (RemarkKind.MISSED, "loss left: why")


def test_other_lines_messages_and_directions_stand_apart() -> None:
    remarks = CountedRemarks("fold-layers")
    for origin in (Origin("a", "m.py", 1), Origin("a", "m.py", 2), Origin("a", "m.py", 2, backward=True)):
        remarks.applied("norm", origin)
    remarks.applied("other", Origin("a", "m.py", 1))
    assert [r.message for r in remarks.remarks()] == ["1 x norm"] * 3 + ["1 x other"]
