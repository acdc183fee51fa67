"""The source of kernels: readable, the same for equal regions, and none for a region that cannot be one kernel."""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stretto.backends.triton.generate import MOST_INSTRUCTIONS, generate
from stretto.backends.triton.region import Declined, Region
from stretto.runtime.program.arguments import Slot
from stretto.runtime.program.records import Function, Instruction, SlotType

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from random_regions import RegionBuilder, random_region  # noqa: E402
from regions import named  # noqa: E402


@pytest.mark.parametrize("name", ["rms_norm", "rotary"])
def test_the_source_of_a_kernel_is_as_reviewed(name: str) -> None:
    """`STRETTO_UPDATE_GOLDEN=1 pytest tests/backends/triton` writes the files anew, for the diff to be read."""
    region, _ = named(name)
    file = HERE / "golden" / f"{name}.txt"
    source = generate(region, name).source
    if os.environ.get("STRETTO_UPDATE_GOLDEN"):
        file.write_text(source, encoding="utf-8")
    assert source == file.read_text(encoding="utf-8")


def test_the_page_shows_a_kernel_as_it_is() -> None:
    page = (HERE.parents[2] / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert f"```text\n{(HERE / 'golden' / 'rms_norm.txt').read_text(encoding='utf-8')}```" in page


def test_equal_regions_share_a_kernel_however_their_slots_are_numbered() -> None:
    region, _ = named("rms_norm")
    shift = {slot: slot + 10 for slot in region.types}

    def moved(value: object) -> object:
        return Slot(shift[value.index]) if isinstance(value, Slot) else value

    code = tuple(
        replace(each, args=tuple(moved(a) for a in each.args), out=tuple(shift[s] for s in each.out if s is not None))
        for each in region.code
    )
    other = Region(
        tuple(shift[s] for s in region.inputs), tuple(shift[s] for s in region.outputs), code,
        {shift[s]: t for s, t in region.types.items()},
    )  # fmt: skip
    assert other.digest("cuda:90") == region.digest("cuda:90") != region.digest("cuda:100")
    code = tuple(replace(i, args=(i.args[0], 1e-5)) if i.op == "aten.add.Scalar" else i for i in region.code)
    assert replace(region, code=code).digest("cuda:90") != region.digest("cuda:90")


def test_every_load_of_16_bits_is_cast_at_once() -> None:
    """Triton's interpreter computes with bfloat16 as if it were integers, and a GPU would round each step."""
    loads = [
        line.strip()
        for seed in range(40)
        for line in generate(random_region(seed)[0], "kernel").source.splitlines()
        if "tl.load(" in line and ("# bfloat16" in line or "# float16" in line)
    ]
    assert len(loads) > 20
    assert [line for line in loads if ".to(tl.float32)" not in line] == []


def middle_sum() -> Region:
    b = RegionBuilder()
    x = b.input(torch.randn(2, 4, 3))
    return b.region([b.call("sum.dim_IntList", Slot(x), [1])])[0]


def sums_of_both() -> Region:
    b = RegionBuilder()
    x = Slot(b.input(torch.randn(4, 4)))
    return b.region([b.call("sum.dim_IntList", x, [0]), b.call("sum.dim_IntList", x, [1])])[0]


def unlike_rows() -> Region:
    b = RegionBuilder()
    x, y = b.input(torch.randn(4, 3)), b.input(torch.randn(4, 5))
    first, second = (b.call("sum.dim_IntList", Slot(each), [-1]) for each in (x, y))
    return b.region([b.call("add.Tensor", Slot(first), Slot(second))])[0]


def turned_rows() -> Region:
    b = RegionBuilder()
    x = b.input(torch.randn(3, 3, 5))
    row = b.call("sum.dim_IntList", Slot(x), [-1], True)
    turned = b.call("transpose.int", Slot(row), 0, 1)
    return b.region([b.call("add.Tensor", Slot(x), Slot(turned))])[0]


def of_op(op: str, *args: object, dtype: str = "float32") -> Region:
    types = {slot: SlotType(dtype, (4, 4)) for slot in range(3)}
    return Region((0, 1), (2,), (Instruction(f"aten.{op}", args, {}, (2,)),), types)


def long_chain() -> Region:
    b = RegionBuilder()
    x = b.input(torch.randn(3))
    for _ in range(MOST_INSTRUCTIONS + 1):
        x = b.call("neg", Slot(x))
    return b.region([x])[0]


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        (middle_sum(), "aten.sum.dim_IntList reduces dims [1] of [2, 4, 3], neither the first nor the last"),
        (sums_of_both(), "it reduces the first dims and the last ones"),
        (unlike_rows(), "its reductions run over 4 rows of 3 and 4 rows of 5"),
        (turned_rows(), "aten.sum.dim_IntList is read at other rows than it is computed for"),
        (of_op("mm.default", Slot(0), Slot(1)), "no kernel computes aten.mm.default"),
        (of_op("pow.Tensor_Scalar", Slot(0), 0.3), "no kernel computes aten.pow.Tensor_Scalar with (0.3,)"),
        (of_op("div.Tensor_mode", Slot(0), Slot(1), "floor"), "no kernel computes aten.div.Tensor_mode with"),
        (of_op("_softmax.default", Slot(0), 0, False), "aten._softmax.default runs along another dim than the last"),
        (of_op("neg.default", Slot(0), dtype="complex64"), "it computes with complex64"),
        (of_op("mul.Tensor", Slot(0), Slot(1), dtype="bool"), "aten.mul.Tensor of booleans"),
        (of_op("scatter.src", Slot(0), 1, Slot(1), Slot(1)), "writes several elements along the dim"),
        (replace(of_op("neg.default", Slot(0)), outputs=(0,)), "it returns one of its arguments"),
        (replace(of_op("neg.default", Slot(0)), outputs=()), "it returns nothing"),
        (long_chain(), f"it has {MOST_INSTRUCTIONS + 1} instructions, more than {MOST_INSTRUCTIONS}"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", value)[:40] if isinstance(value, str) else "",
)
def test_a_region_that_no_kernel_computes_is_declined_with_the_reason(region: Region, reason: str) -> None:
    with pytest.raises(Declined, match=re.escape(reason)):
        generate(region, "kernel")


def test_a_function_without_types_is_declined() -> None:
    function = Function(2, (0,), (1,), (Instruction("aten.neg.default", (Slot(0),), {}, (1,)),))
    with pytest.raises(Declined, match="does not state the types of its slots"):
        Region.of(function, ())
