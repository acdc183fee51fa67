"""Modules as text: what is printed is read back the same, locations included, for every model that is captured."""

from __future__ import annotations

from itertools import product

import pytest
from stretto.frontend.capture.capture import capture
from stretto.frontend.captured import Mode
from stretto.frontend.to_ir import to_module
from stretto.ir.locations import Origin, from_location, to_location
from stretto.ir.module import Level, Module, argument_records, operations, result_records
from stretto.ir.operations import is_packing, read, results_of

from ..end_to_end.models import MODELS, Size
from ..subsets import only

SIZE = Size(layers=1)


def _captured(model: str, mode: Mode) -> Module:
    case = MODELS[model](SIZE)
    given = case if mode is Mode.TRAIN else case.without_labels()
    return to_module(capture(given.model, (), given.inputs, mode=mode, loss_only=mode is Mode.TRAIN))


@pytest.mark.parametrize(
    ("model", "mode"),
    only([("gpt", Mode.TRAIN), ("llama", Mode.TRAIN), ("gpt2", Mode.INFER)], product(MODELS, Mode)),
)
def test_a_captured_module_is_read_back_as_it_was_printed(model: str, mode: Mode) -> None:
    module = _captured(model, mode)
    again = Module.parse(module.text())
    assert again.text() == module.text()
    assert again.text(locations=False) == str(module)
    for one, other in zip(_operations(module), _operations(again), strict=True):
        assert from_location(one.location) == from_location(other.location)
        assert _constants(one) == _constants(other)


def test_arguments_and_results_keep_what_they_are_called() -> None:
    module = _captured("gpt", Mode.TRAIN)
    again = Module.parse(module.text())
    for records in (argument_records, result_records):
        assert records(again.functions()["main"]) == records(module.functions()["main"])
    names = [r["name"] for r in argument_records(again.functions()["main"]) if r["kind"] == "parameter"]
    assert "blocks.0.attention.q_proj.weight" in names


def test_every_operation_of_a_captured_module_knows_its_line() -> None:
    module = _captured("gpt", Mode.TRAIN)
    origins = [from_location(op.location) for op in _operations(module)]
    assert {origin.backward for origin in origins} == {False, True}
    assert all(origin.file.endswith("models.py") and origin.line > 0 for origin in origins if not origin.backward)


@pytest.mark.parametrize(
    "origin",
    [
        Origin(),
        Origin("layers.3.mlp"),
        Origin("layers.3.mlp", "/a b/model.py", 12),
        Origin("", "model.py", 7, backward=True),
        Origin('odd"name\\', "model.py", 1, backward=True),
    ],
    ids=str,
)
def test_an_origin_is_kept_in_a_location_and_in_its_text(origin: Origin) -> None:
    location = to_location(origin)
    assert from_location(location) == origin
    text = f'module {{ func.func private @f() attributes {{note = "x"}} {location} }}'
    [function] = Module.parse(text).operation.regions[0].blocks[0].operations
    assert from_location(function.location) == origin


def test_level_and_mesh_are_in_the_text() -> None:
    mesh = (("dp", 2), ("tp", 3))
    module = Module.parse(Module.empty(Level.COMM, mesh).text())
    assert (module.level, module.mesh) == (Level.COMM, mesh)
    bare = Module.parse("module {}")
    assert (bare.level, bare.mesh) == (Level.ATEN, ())


def _operations(module: Module) -> list[object]:
    return [op for op in operations(module.functions()["main"]) if not is_packing(op)][:-1]


def _constants(op: object) -> tuple[str, str, int]:
    call = read(op)
    assert call is not None
    bare = call.replace_values(["%"] * len(call.values()))
    return call.name, repr((bare.args, bare.kwargs)), len(results_of(op))
