"""Regions keep values, whatever stands between their operations; and a kernel can be written for each."""

import random
from pathlib import Path

import pytest
from stretto.backends.program.lower_program import lower_program
from stretto.backends.triton import joins, pointwise, reductions, views
from stretto.backends.triton.expansions import RULES
from stretto.backends.triton.generate import generate
from stretto.backends.triton.region import Region
from stretto.backends.triton.scalars import POINTWISE
from stretto.ir.equivalence.compare import compare
from stretto.ir.kinds import kind_of
from stretto.ir.module import Module, operations, set_argument_records, set_result_records, terminator
from stretto.passes.fusion.fuse_regions import FuseRegions
from stretto.passes.fusion.fusible import ROLES

CASES = (Path(__file__).parent / "fuse_regions.mlir").read_text(encoding="utf-8").split("// -----\n")
X, ROW, WIDE = "tensor<6x6xf32>", "tensor<6x1xf32>", "tensor<6x12xf32>"
PAIR = f"tuple<{X}, {X}>"


class RandomModule:
    """Operations that a region holds between products, collectives and sums over rows, on random earlier values."""

    def __init__(self, seed: int, collectives: bool = True) -> None:
        rng = random.Random(seed)
        self.lines: list[str] = []
        values = ["%x", "%y"]
        for _ in range(rng.randint(6, 24)):
            kind = rng.choice(
                ["unary", "unary", "mul", "rows", "view", "mm", "collective" if collectives else "mm", "join"]
            )
            values.append(self.step(kind, rng.choice(values[-5:]), rng.choice(values), rng))
        self.results = [values[-1], *rng.sample(values[2:], 2)]

    def step(self, kind: str, a: str, b: str, rng: random.Random) -> str:
        match kind:
            case "unary":
                return self.op(f"aten.{rng.choice(['sin', 'neg', 'silu'])}_default", [a], [X])
            case "rows":
                row = self.op("aten.amax_default", [a], [X], ROW, "{dim = [-1], keepdim = true}")
                return self.op("aten.mul_tensor", [b, row], [X, ROW])
            case "view":
                return self.op("aten.t_default", [a], [X])
            case "collective":
                return self.op("comm.all_reduce", [a], [X], X, '{axes = ["tp"], reduce = "max"}')
            case "join":
                pair = self.op("builtin.unrealized_conversion_cast", [a, b], [X, X], PAIR)
                wide = self.op("aten.cat_default", [pair], [PAIR], WIDE, "{dim = 1}")
                return self.op("aten.slice_tensor", [wide], [WIDE], X, "{dim = 1, start = 3, end = 9, step = 1}")
            case _:
                return self.op(f"aten.{'mm_default' if kind == 'mm' else 'mul_tensor'}", [a, b], [X, X])

    def op(self, name: str, operands: list[str], types: list[str], result: str = X, constants: str = "") -> str:
        value = f"%{len(self.lines)}"
        said = f"{value} = " + f'"{name}"({", ".join(operands)}) {constants} : ({", ".join(types)}) -> {result}'
        self.lines.append(said)
        return value

    def text(self) -> str:
        types = ", ".join([X] * len(self.results))
        head = f"func.func @main(%x: {X}, %y: {X}) -> ({types}) {{"
        body = "\n".join([head, *self.lines, f"return {', '.join(self.results)} : {types}", "}"])
        return f'module attributes {{comm.level = "comm", comm.mesh = [["tp", 2]]}} {{\n{body}\n}}'


def with_records(module: Module) -> Module:
    """The module with names for what `main` takes and gives, as a program has them."""
    main = module.functions()["main"]
    set_argument_records(main, [{"name": name, "kind": "input", "index": i} for i, name in enumerate("xy")])
    count = len(list(terminator(main).operands))
    set_result_records(main, [{"name": "", "kind": "output", "index": index} for index in range(count)])
    return module


def collectives(module: Module) -> list[str]:
    names = [op.operation.name for op in operations(module.functions()["main"])]
    return [name for name in names if name.startswith("comm.")]


@pytest.mark.parametrize("text", [*CASES, *(RandomModule(seed).text() for seed in range(30))], ids=lambda text: "")
def test_values_and_collectives_stay(text: str) -> None:
    before, after = Module.parse(text), Module.parse(text)
    FuseRegions().run(after)
    after.verify()
    assert compare(before, after, tolerance=0.0).is_equal
    assert collectives(before) == collectives(after)


def test_the_regions_of_random_modules_are_one_kernel_each() -> None:
    count = 0
    for seed in range(30):
        module = with_records(Module.parse(RandomModule(seed, collectives=False).text()))
        FuseRegions().run(module)
        lowered = lower_program(module)
        for function in lowered.functions.values():
            if function.kind is not None:
                generate(Region.of(function, lowered.types), "kernel")
                count += 1
    assert count > 30


def test_a_second_run_outlines_nothing() -> None:
    module = Module.parse(CASES[0])
    assert FuseRegions().run(module).rewritten == 1
    assert FuseRegions().run(module).rewritten == 0
    assert [name for name, function in module.functions().items() if kind_of(function) is not None] == ["region"]


def test_the_pass_takes_no_op_that_the_generator_does_not_know() -> None:
    known = POINTWISE | views.VIEWS | frozenset(joins.JOINS) | reductions.REDUCTIONS | frozenset(RULES)
    assert set(ROLES) <= known
    assert set(pointwise.TABLE) <= set(ROLES)
