"""Pipelines as text: what they mean, what they print, and where they are wrong."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stretto.diagnostics import StrettoError
from stretto.ir.module import Module
from stretto.passes import pipeline_text as pipeline
from stretto.passes import registry
from stretto.passes.base import Pass, Report
from stretto.passes.layers.fold_layers import FoldLayers
from stretto.passes.manager import PassManager, single, step_name
from stretto.passes.option_values import Range
from stretto.passes.overlap.start_collectives import StartCollectives
from stretto.passes.pass_class import pass_class
from stretto.passes.pipeline_text import parse_pipeline, print_pipeline
from stretto.passes.registry import TABLE, UPSTREAM, names
from stretto.passes.sharding.place_arguments import PlaceArguments


def test_a_pipeline_names_passes_of_ours_and_of_upstream() -> None:
    assert parse_pipeline("fold-layers, canonicalize ,start-collectives") == [
        FoldLayers(),
        "canonicalize",
        StartCollectives(),
    ]


def test_a_pipeline_prints_as_it_is_read(tmp_path: object) -> None:
    text = "fold-layers,cse,start-collectives"
    assert print_pipeline(parse_pipeline(text)) == text


def test_a_plan_is_an_option_that_names_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "small.plan"
    file.write_text("mesh (dp=2)\n")
    [step] = parse_pipeline(f"place-arguments{{plan={file}}}")
    assert isinstance(step, PlaceArguments)
    assert step.plan.mesh.size == 2
    assert parse_pipeline(print_pipeline([step])) == [step]


@pytest.mark.parametrize("name", TABLE)
def test_every_registered_pass_has_the_name_of_its_file(name: str) -> None:
    cls = pass_class(name)
    assert cls.name == name
    assert cls.__module__.endswith(name.replace("-", "_"))
    assert name in names()


@pytest.mark.parametrize(
    ("text", "code", "column"),
    [
        ("", "E0412", 1),
        ("fold-layer", "E0410", 1),
        ("cse,fold-layer", "E0410", 5),
        ("fold-layers{", "E0412", 12),
        ("fold-layers{a", "E0412", 14),
        ("fold-layers{a=}", "E0412", 15),
        ("fold-layers{a=1}", "E0414", 13),
        ("fold-layers;cse", "E0412", 12),
        ("fold-layers,", "E0412", 13),
        ("cse{a=b}", "E0413", 5),
        ("canonicalize{top-down=true bottom-up=true}", "E0413", 28),
        ("canonicalize{max-iterations=many}", "E0413", 14),
        ("canonicalize{top-down=true top-down=true}", "E0412", 28),
        ("place-arguments{plan=a plan=b}", "E0412", 24),
        ("fold-layers{a={b}", "E0412", 12),
        ("builtin.module(cse", "E0412", 15),
        ("builtin.module(func.func(cse)", "E0412", 15),
        ("builtin.module()", "E0412", 16),
        ("cse)", "E0412", 4),
        ("scf.if(cse)", "E0412", 1),
        ("func.func(fold-layer)", "E0410", 11),
        ("place-arguments", "E0415", 1),
    ],
)
def test_a_wrong_pipeline_is_refused_at_its_place(text: str, code: str, column: int) -> None:
    with pytest.raises(StrettoError) as caught:
        parse_pipeline(text)
    assert caught.value.code == code
    assert caught.value.span is not None
    assert caught.value.span.column == column


def test_anchors_are_dropped() -> None:
    text = "builtin.module(fold-layers, func.func ( cse,canonicalize) ,builtin.module(func.func(symbol-dce)))"
    assert parse_pipeline(text) == [FoldLayers(), "cse", "canonicalize", "symbol-dce"]
    assert parse_pipeline("func.func(cse),sccp") == ["cse", "sccp"]


@pytest.mark.parametrize("name", UPSTREAM)
def test_passes_of_upstream_run_whichever_way_they_are_nested(name: str) -> None:
    text = "func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> { return %x : tensor<4xf32> }"
    for pipeline_ in (name, f"builtin.module({name})", f"func.func({name})", f"builtin.module(func.func({name}))"):
        module = Module.parse(text)
        PassManager(parse_pipeline(pipeline_)).run(module)
        assert "main" in module.functions()


@pytest.mark.parametrize(
    "text",
    [
        "canonicalize{max-iterations=2 top-down=true}",
        "canonicalize{top-down}",
        "canonicalize{disable-patterns=a,b}",
        "canonicalize{disable-patterns={a,b} top-down=false}",
        "cse,canonicalize{disable-patterns={a,b}},symbol-dce",
    ],
)
def test_options_of_upstream_go_to_mlir_and_print_as_they_are_read(text: str) -> None:
    steps = parse_pipeline(text)
    assert print_pipeline(steps) == text
    assert list(single([text])) == steps
    manager = PassManager([text])
    manager.run(Module.parse("func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> { return %x : tensor<4xf32> }"))
    assert [run.name for run in manager.runs] == [step_name(step) for step in steps]
    assert {run.name for run in manager.runs} <= {*UPSTREAM}


def test_no_options_in_braces_are_no_options() -> None:
    assert parse_pipeline("cse{},canonicalize{ }") == ["cse", "canonicalize"]


@dataclass(frozen=True)
class _Counted(Pass):
    name: ClassVar[str] = "fold-layers"
    times: int = 1

    def run(self, module: Module) -> Report:
        return Report()


def test_a_value_of_another_type_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "pass_class", lambda name: _Counted)
    assert parse_pipeline("fold-layers{times=3}") == [_Counted(3)]
    assert print_pipeline([_Counted(3)]) == "fold-layers{times=3}"
    with pytest.raises(StrettoError, match="expected an integer") as caught:
        parse_pipeline("fold-layers{times=many}")
    assert caught.value.code == "E0416"


@dataclass(frozen=True)
class _Limited(Pass):
    name: ClassVar[str] = "fold-layers"
    least: Annotated[int, Range(0, unit="bytes")] = 0
    share: Annotated[float | None, Range(0, 1)] = None
    way: str | None = None

    def run(self, module: Module) -> Report:
        return Report()


def test_a_value_out_of_its_range_is_refused_at_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "pass_class", lambda name: _Limited)
    for text in ("fold-layers", "fold-layers{least=3 share=0.5 way=up}"):
        assert print_pipeline(parse_pipeline(text)) == text
    assert parse_pipeline("fold-layers{share=none}") == [_Limited()]
    for text, expected in {
        "least=-1": "an integer of at least 0 bytes", "least=x": "an integer of at least 0 bytes",
        "share=1.5": "a number from 0 to 1", "share=nan": "a number from 0 to 1",
    }.items():  # fmt: skip
        with pytest.raises(StrettoError, match=expected) as caught:
            parse_pipeline(f"fold-layers{{{text}}}")
        assert caught.value.code == "E0416" and caught.value.span is not None
        assert caught.value.span.column == len("fold-layers{") + text.index("=") + 2


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("{b=1}", "b=1"), ("{b={c=1 d=2} e}", "b={c=1 d=2} e"), ('"b=1 c"', "b=1 c"), ('"{"', "{"), ("{}", ""),
        ('{b="}"}', 'b="}"'), ('{"b"}', '"b"'), ('"{b}"', "{b}"), ("up", "up"),
    ],
)  # fmt: skip
def test_a_value_may_hold_options_of_its_own(written: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "pass_class", lambda name: _Limited)
    steps = parse_pipeline(f"fold-layers{{way={written} least=2}}")
    assert steps == [_Limited(2, None, value)]
    assert parse_pipeline(print_pipeline(steps)) == steps


def test_what_others_register_must_be_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_others", lambda: {"theirs": "math:pi"})
    with pytest.raises(StrettoError, match="no subclass of Pass") as caught:
        parse_pipeline("theirs")
    assert caught.value.code == "E0411"


def test_an_unknown_pass_names_the_nearest() -> None:
    with pytest.raises(StrettoError, match='did you mean "fold-layers"'):
        parse_pipeline("fold-layer")


@given(st.text(max_size=60))
def test_any_text_is_a_pipeline_or_an_error_of_ours(text: str) -> None:
    try:
        steps = parse_pipeline(text)
    except StrettoError:
        return
    assert parse_pipeline(print_pipeline(steps)) == steps


WORDS = (
    *names(), "fold-layer", "plan", "plan=", "=", "{", "}", ",", " ", "\n", '"', '"a b"', "times=3", "x=9", "9" * 5000,
    "(", ")", "builtin.module(", "func.func(", "canonicalize{", "top-down=true", "max-iterations=x",
    "disable-patterns={",
    "\0", "é", "{plan=", "-p", "place-arguments{plan=nowhere.plan}", "place-arguments{plan=.}", 'plan=""',
)  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(WORDS), max_size=12).map("".join))
@example("{" * 100_000)
@example("cse," * 50_000)
@example("func.func(" * 50_000)
@example("func.func(" * 30_000 + "cse" + ")" * 30_000)
@example("canonicalize{disable-patterns=" + "{" * 50_000 + "}" * 50_000)
@example("canonicalize{a=" + "{" * 1000 + "}" * 1000 + "}")
@example("place-arguments{plan=" + "a" * 100_000 + "}")
@example("place-arguments{plan=\0}")
def test_any_words_of_the_syntax_are_a_pipeline_or_an_error_with_a_place_in_the_text(text: str) -> None:
    start = time.process_time()
    try:
        steps = parse_pipeline(text)
    except StrettoError as error:
        assert error.code.startswith(("E041", "E0118"))
        assert error.span is None or 1 <= error.span.line <= text.count("\n") + 1
    else:
        assert parse_pipeline(print_pipeline(steps)) == steps
    assert time.process_time() - start < 1
