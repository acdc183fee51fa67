"""Implementations of kinds: one that is registered runs in place of the body, and only where it says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from stretto import Implementation, StrettoError, register_implementation, use_implementations
from stretto.runtime.errors import ProgramError, RunError
from stretto.runtime.implementations import registry
from stretto.runtime.implementations.binding import bindings
from stretto.runtime.implementations.registry import KindFunction
from stretto.runtime.program.arguments import Slot
from stretto.runtime.program.program import Program
from stretto.runtime.program.records import Instruction, Kind
from stretto.runtime.prover import prove
from stretto.runtime.rank.executor import Executor
from stretto.runtime.threads.communicator import RankGroup

from .kind_program import kind_program, step, with_function

X = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
BYTES = 2 * 3 * 4
Built = Callable[..., tuple[torch.Tensor, ...]]


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_REGISTERED", [])
    yield


def ours(*kinds: str, declines: str = "", workspace: int | None = None, targets: tuple[str, ...] = ("cpu",)):  # type: ignore[no-untyped-def]
    """An implementation that multiplies by 100, so that it shows, of all functions but one."""

    def build(function: KindFunction, target: str) -> Built | None:
        return None if function.name == declines else lambda x: (x * 100,)

    stated = None if workspace is None else lambda function, target: workspace
    return Implementation("ours", kinds, targets, build, stated)


def run(program: Program) -> list[torch.Tensor]:
    return Executor(program, RankGroup(program.mesh).communicator(0)).forward([X])[0]


def test_the_body_runs_where_nothing_is_registered() -> None:
    y, z = run(kind_program())
    assert torch.equal(y, 2 * X + 1)
    assert torch.equal(z, 3 * y)


def test_a_registered_implementation_runs_in_place_of_the_body() -> None:
    register_implementation(ours("scaled"))
    y, z = run(kind_program())
    assert torch.equal(y, 100 * X)
    assert torch.equal(z, 3 * y)


def test_an_implementation_sees_kind_types_and_body() -> None:
    seen: list[KindFunction] = []

    def build(function: KindFunction, target: str) -> None:
        seen.append(function)

    register_implementation(Implementation("looks", ("scaled",), ("cpu",), build))
    bindings(kind_program(), "cpu")
    [function] = seen
    assert function.kind.attributes == {"factor": 2.0}
    assert str(function.operand("x")) == "float32 [2, 3]" == str(function.results[0])
    assert function.operand("mask") is None
    assert [each.op for each in function.body.code] == ["aten.mul.Scalar", "aten.add.Scalar"]


def test_of_a_pair_both_or_neither_are_taken() -> None:
    register_implementation(ours("scaled", "scaled_backward"))
    assert torch.equal(run(kind_program())[1], 10_000 * X)
    register_implementation(ours("scaled", "scaled_backward", declines="scaled_backward", workspace=1))
    registry._REGISTERED.pop()
    program = kind_program()
    assert torch.equal(run(program)[0], 2 * X + 1)
    assert [each.declined for each in bindings(program, "cpu").values()] == [("ours",), ("ours",)]


def test_one_of_another_target_is_not_taken() -> None:
    register_implementation(ours("scaled", targets=("cuda",)))
    assert torch.equal(run(kind_program())[0], 2 * X + 1)
    assert bindings(kind_program(), "cuda")["scaled"].kernel is not None


def test_the_last_registered_comes_first_and_what_it_declines_the_one_before_takes() -> None:
    register_implementation(ours("scaled"))
    register_implementation(Implementation("none", ("scaled",), ("cpu",), lambda function, target: None))
    found = bindings(kind_program(), "cpu")["scaled"]
    assert found.implementation is not None
    assert (found.implementation.name, found.declined) == ("ours", ("none",))


def test_a_proof_counts_the_stated_workspace_and_else_the_body() -> None:
    [of_body] = prove(kind_program()).peaks
    register_implementation(ours("scaled", workspace=5 * BYTES))
    [of_kernel] = prove(kind_program()).peaks
    registry._REGISTERED.clear()
    register_implementation(ours("scaled"))
    [unstated] = prove(kind_program()).peaks
    assert of_body.bytes == unstated.bytes == 3 * BYTES
    assert of_kernel.bytes == (1 + 1 + 5) * BYTES


def test_a_failing_kernel_is_named() -> None:
    def build(function: KindFunction, target: str) -> Built:
        return lambda x: (x @ x,)

    register_implementation(Implementation("theirs", ("scaled",), ("cpu",), build))
    with pytest.raises(RunError, match=r"instruction 0 \(scaled by theirs\) of \"main\"") as caught:
        run(kind_program())
    assert caught.value.code == "E0320"


def test_a_folder_keeps_kinds(tmp_path: Path) -> None:
    program = kind_program()
    program.save(tmp_path / "p")
    assert Program.load(tmp_path / "p").functions["scaled"].kind == program.functions["scaled"].kind


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": Kind("Scaled", ("x",), ("y",))}, "'Scaled' is not a name"),
        ({"kind": Kind("scaled", (), ("y",))}, "kind.operands: expected a name for each of 1, found 0"),
        ({"kind": Kind("scaled", ("x",), ("y", "z"))}, "kind.results: expected a name for each of 1, found 2"),
        ({"kind": Kind("scaled", ("x",), ("y",), {"a-b": 1})}, "kind.attributes: a key is not a name"),
        (
            {"code": (Instruction("rank.offset", (), {"axes": ["tp"], "chunk": 1}, (2,)),)},
            "code[0]: rank.offset may not stand here",
        ),
    ],
)  # fmt: skip
def test_a_kind_that_does_not_fit_its_function_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ProgramError) as caught:
        _ = with_function(kind_program(), "scaled", **changes).validated
    assert caught.value.code == "E0306"
    assert message in caught.value.message


def test_an_entry_has_no_kind() -> None:
    with pytest.raises(ProgramError, match="an entry has no kind"):
        _ = with_function(kind_program(), "main", kind=Kind("scaled", ("x",), ("y", "z"))).validated


def test_a_result_in_the_memory_of_an_argument_is_refuted() -> None:
    reshaped = (step("aten.reshape.default", Slot(0), [2, 3], out=(1,)),)
    verdict = prove(with_function(kind_program(), "scaled_backward", code=reshaped))
    assert verdict.counterexample is not None
    assert verdict.counterexample.code == "E0732"


@pytest.mark.parametrize(("kinds", "targets"), [((), ("cpu",)), (("scaled",), ()), (("scaled",), ("tpu",))])
def test_an_implementation_names_kinds_and_targets(kinds: tuple[str, ...], targets: tuple[str, ...]) -> None:
    with pytest.raises(StrettoError) as caught:
        register_implementation(Implementation("ours", kinds, targets, lambda function, target: None))
    assert caught.value.code == "E0315"


def test_packages_offer_implementations_to_callers_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = [EntryPoint(name, f"{__name__}:{value}", registry.ENTRY_POINTS) for name, value in
               (("mine", "OFFERED"), ("broken", "X"))]  # fmt: skip
    monkeypatch.setattr(registry, "entry_points", lambda group: offered)
    assert torch.equal(run(kind_program())[0], 2 * X + 1)
    use_implementations("mine")
    assert torch.equal(run(kind_program())[0], 100 * X)
    for name, message in (("mien", "mine"), ("broken", "Tensor")):
        with pytest.raises(StrettoError) as caught:
            use_implementations(name)
        assert caught.value.code == "E0315"
        assert message in f"{caught.value.message} {caught.value.help}"


OFFERED = [ours("scaled")]
