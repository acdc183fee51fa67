"""A faulty pass `do-harm` of another package, and a module to run it on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from stretto.passes import registry

MODULE = """module attributes {comm.level = "comm", comm.mesh = [["tp", 2]]} {
func.func @main(%x: tensor<4xf32, {tp = "partial(sum)"}>) -> (tensor<4xf32>) {
  %0 = "comm.all_reduce"(%x) {axes = ["tp"], reduce = "sum"} : (tensor<4xf32, {tp = "partial(sum)"}>) -> tensor<4xf32>
  %1 = "aten.neg_default"(%0) : (tensor<4xf32>) -> tensor<4xf32>
  return %1 : tensor<4xf32>
}
}
"""

FAULTY = '''"""Do what no pass may do."""
from dataclasses import dataclass
from typing import ClassVar

from stretto.ir.attributes import to_attribute
from stretto.ir.locations import from_location
from stretto.ir.module import operations, terminator
from stretto.passes.base import Pass, Remark, RemarkKind, Report


class OfItsOwn(Exception):
    """Raised by no one else."""


@dataclass(frozen=True)
class Faulty(Pass):
    name: ClassVar[str] = "do-harm"
    reduce: str = "min"
    """The reduction to write into every collective."""
    axes: str = "tp"
    """The axis to write into every collective."""
    raises: bool = False
    """Raise instead."""

    def run(self, module):
        remarks = []
        for op in operations(module.functions()["main"]):
            if op.operation.name == "comm.all_reduce":
                if self.raises:
                    raise OfItsOwn("no such thing")
                op.attributes["reduce"] = to_attribute(self.reduce)
                op.attributes["axes"] = to_attribute([self.axes])
                said = f"now {self.reduce} over {self.axes}"
                remarks.append(Remark(self.name, RemarkKind.APPLIED, said, from_location(op.location)))
        return Report(1, tuple(remarks))
'''


def register(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pipelines name `do-harm`."""
    (folder / "faulty_of_a_test.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(registry, "_others", lambda: {"do-harm": "faulty_of_a_test:Faulty"})
    monkeypatch.delitem(sys.modules, "faulty_of_a_test", raising=False)
