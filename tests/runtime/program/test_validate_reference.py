"""The reference is validated as the program is: ops, slots, arguments; and it writes to nothing of the caller's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from stretto.diagnostics import StrettoError
from stretto.runtime.errors import RunError
from stretto.runtime.program.reference import run_reference
from stretto.runtime.program.reference_records import Reference
from stretto.runtime.program.validate_reference import validate_reference

Json = dict[str, Any]
SLOT = {"%": 0}


def call(op: str, args: list[Any], out: list[int | None], kwargs: Mapping[str, Any] = {}) -> Json:
    return {"op": op, "args": args, "kwargs": dict(kwargs), "out": out, "free": []}


def reference(*code: Json, slots: int = 4, output: int = 1, kind: str = "parameter") -> Reference:
    given = {"name": "w", "kind": kind, "aliases": [], "shape": [2, 2], "dtype": "float32", "index": None}
    outputs = [{"kind": "output", "name": "", "index": 0, "slot": output}]
    return Reference.from_json({"inputs": [given], "outputs": outputs, "slots": slots, "code": list(code)})


@pytest.mark.parametrize(
    ("code", "expected", "says"),
    [
        (call("aten.from_file.default", ["/tmp/x", True, 4], [1]), "E0305", r"reference\.json\.code\[0\]"),
        (call("aten.as_strided.default", [SLOT, [1], [1]], [1]), "E0305", "not in the table"),
        (call("builtin.exec.x", [SLOT], [1]), "E0305", "not in the table"),
        (call("aten.rand.default", [[2]], [1]), "E0305", "not in the table"),
        (call("aten.dropout.default", [SLOT, 0.5, True], [1]), "E0305", "draw"),
        (call("aten.neg.default", [{"%": 2}], [1]), "", "slot 2 is read, but is not set"),
        (call("aten.neg.default", [SLOT], [9]), "", "no such slot"),
        (call("aten.neg.default", [SLOT, 3], [1]), "", "takes at most 1"),
        (call("aten.mul.Tensor", [SLOT], [1]), "", "lacks its argument 'other'"),
        (call("aten.neg.default", [SLOT], [1], {"out": SLOT}), "", "has no argument 'out'"),
        (call("aten.ones.default", [[2]], [1], {"device": "meta"}), "", "not for a program to say"),
        (call("stretto.autocast.end", [], []), "", "did not begin"),
        (call("stretto.random.default", [3], [1]), "", "not those of a random op"),
    ],
)
def test_what_does_not_belong_into_a_reference_is_refused_at_its_place(code: Json, expected: str, says: str) -> None:
    with pytest.raises((StrettoError, ValueError), match=says) as caught:
        validate_reference(reference(code))
    assert not expected or caught.value.code == expected  # type: ignore[union-attr]


def test_an_output_that_is_not_set_is_refused() -> None:
    with pytest.raises(ValueError, match="slot 3 is not set"):
        validate_reference(reference(call("aten.neg.default", [SLOT], [1]), output=3))


def test_a_dropout_that_is_switched_off_is_allowed() -> None:
    validate_reference(reference(call("aten.dropout.default", [SLOT, 0.5, False], [1])))


@pytest.mark.parametrize("through", ["itself", "a view"])
def test_a_reference_cannot_write_to_a_parameter(through: str) -> None:
    view = [call("aten.t.default", [SLOT], [1])] if through == "a view" else []
    written = call("aten.mul_.Tensor", [{"%": len(view)}, 2.0], [2])
    made, weight = reference(*view, written, output=2), torch.ones(2, 2)
    validate_reference(made)
    with pytest.raises(RunError, match="write to a parameter") as caught:
        run_reference(made, {("parameter", "w"): weight}, [])
    assert caught.value.code == "E0343" and bool((weight == 1).all())


def test_a_reference_cannot_write_to_a_parameter_as_running_statistics() -> None:
    args = [{"%": 1}, None, None, {"%": 0}, {"%": 0}, True, 0.1, 1e-5, False]
    code = [call("aten.ones.default", [[3, 2]], [1]), call("aten.batch_norm.default", args, [2])]
    made, weight = reference(*code, output=2), torch.ones(2)
    with pytest.raises(RunError, match="write to a parameter"):
        run_reference(made, {("parameter", "w"): weight}, [])


def test_writes_reach_a_copy_of_a_buffer() -> None:
    made, buffer = reference(call("aten.mul_.Tensor", [SLOT, 2.0], [1]), kind="buffer"), torch.ones(2, 2)
    [result], _ = run_reference(made, {("buffer", "w"): buffer}, [])
    assert bool((result == 2).all()) and bool((buffer == 1).all())
