"""What a torch op, or a function with a kind, costs on a GPU, from the types of its slots.

Products of matrices, attention, convolutions: what only moves bytes, `steps.py` prices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

from ...costs.kernels.attention import attention_seconds
from ...costs.kernels.gpu import Gpu
from ...costs.kernels.matmul import batched_matmul_seconds
from ...costs.kernels.memory_bound import quantize_seconds
from ...runtime.program.records import Function, Instruction, SlotType

FORMATS = {"float64": "fp32", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float8_e4m3fn": "fp8"}
"""By dtype: the format that prices it. Programs for checks in float64 are priced as float32."""
BACKWARD = 2.5 * 73 / 63
"""A fused attention's backward, in forwards: five products for two, at 63 % of an A100's peak for 73 %.

Source: Dao, "FlashAttention-2" (arXiv 2307.08691), sections 3.1 and 4.1.
"""
_GATHERS = ("aten.embedding.", "aten.index.", "aten.gather.", "aten.index_select.", "aten.slice")


class Products(StrEnum):
    """The formats in which matrix products are priced."""

    AS_STATED = "as stated"
    """As the program states the types of their factors."""
    FP8 = "fp8"
    """16-bit factors are quantized to 8 bits in front of each product, but for those of attention."""


class Kind(StrEnum):
    """What a kernel computes."""

    MATMUL = "matrix products"
    ATTENTION = "attention"
    CONVOLUTION = "convolutions"
    EXPERTS = "products in groups"
    MEMORY = "memory-bound"


@dataclass(frozen=True)
class Kernel:
    """One kernel: its time on a GPU, and the least that its products would take (seconds)."""

    kind: Kind
    seconds: float
    at_peak: float = 0.0
    """What its products would take at the peak of their format."""
    location: int | None = None
    """Of its first instruction, among the program's locations."""


Types = Mapping[int, SlotType]


def kernel_of(step: Instruction, types: Types, gpu: Gpu, products: Products = Products.AS_STATED) -> Kernel | None:
    """The kernel of an instruction that computes products; None for one that only moves bytes."""
    for prefix, price in _PRODUCTS.items():
        if step.op.startswith(prefix):
            operands = [types[slot] for slot in step.reads()]
            results = [types[slot] for slot in step.writes() if slot in types]
            if products is Products.FP8 and price in (_matmul, _grouped):
                operands = [_quantized(each) for each in operands]
                results = [_quantized(each) for each in results]
            return price(step, operands, results, gpu)
    return None


def _quantized(type: SlotType) -> SlotType:
    """A 16-bit tensor as one of 8 bits, for the price of a product."""
    return replace(type, dtype="float8_e4m3fn") if type.dtype in ("bfloat16", "float16") else type


def kernel_of_function(function: Function, types: Types, gpu: Gpu) -> Kernel | None:
    """The kernel that a function is as a whole, by its kind; None for one that is priced by its instructions."""
    kind = function.kind
    if kind is None or kind.name not in ("attention", "attention_backward"):
        return None
    slots = dict(zip(kind.operands, function.arguments, strict=True))
    query, key = types[slots["query"]], types[slots["key"]]
    is_causal = bool(kind.attributes.get("causal", False))
    return _attention(query, key, gpu, is_causal=is_causal, is_backward=kind.name == "attention_backward")


def read_bytes(step: Instruction, slot: int, types: Types) -> int:
    """The bytes that an instruction reads of a slot: what gathers rows reads as much as it returns."""
    nbytes = types[slot].bytes
    if step.op.startswith(_GATHERS):
        return min(nbytes, sum(types[made].bytes for made in step.writes() if made in types))
    return nbytes


Tensors = Sequence[SlotType]


def _products(kind: Kind, batch: float, m: float, n: float, k: float, dtype: str, gpu: Gpu, times: int = 1) -> Kernel:
    format = FORMATS.get(dtype, "fp32")
    peak = gpu.peak(format)
    seconds = float(batched_matmul_seconds(batch, m, n, k, format, gpu)) if min(batch, m, n, k) > 0 else 0.0
    if format == "fp8":
        seconds += float(quantize_seconds(batch * m * k, gpu))
    return Kernel(kind, times * seconds, times * 2.0 * batch * m * n * k / peak)


def _matmul(step: Instruction, operands: Tensors, results: Tensors, gpu: Gpu) -> Kernel:
    """The last two tensors that are read are the factors: an addition's term is first."""
    left, right = operands[-2].shape, operands[-1].shape
    return _products(Kind.MATMUL, prod(left[:-2]), left[-2], right[-1], left[-1], operands[-1].dtype, gpu)


def _convolution(step: Instruction, operands: Tensors, results: Tensors, gpu: Gpu) -> Kernel:
    """A product of as many rows as the result has positions; transposed ones of as many as the input has."""
    backward = "backward" in step.op
    given, weight = (operands[1], operands[2]) if backward else (operands[0], operands[1])
    made = operands[0] if backward else results[0]
    positions = max(prod(given.shape) / given.shape[1], prod(made.shape) / made.shape[1])
    return _products(
        Kind.CONVOLUTION, 1, positions, weight.shape[0], prod(weight.shape[1:]), weight.dtype, gpu, 2 if backward else 1
    )  # fmt: skip


def _fused_attention(step: Instruction, operands: Tensors, results: Tensors, gpu: Gpu) -> Kernel:
    """Of torch's own op, which stands in programs where an idiom could not be raised."""
    backward = "backward" in step.op
    q, k = (operands[1], operands[2]) if backward else (operands[0], operands[1])
    flags = [argument for argument in step.args if isinstance(argument, bool)]
    causal = bool(flags and flags[0]) or bool(step.kwargs.get("is_causal", False))
    return _attention(q, k, gpu, is_causal=causal, is_backward=backward)


def _attention(q: SlotType, k: SlotType, gpu: Gpu, *, is_causal: bool, is_backward: bool) -> Kernel:
    batch, heads, queries, size = q.shape
    key_heads, keys = k.shape[1], k.shape[2]
    format = FORMATS.get(q.dtype, "fp32")
    peak = gpu.peak(format)
    seconds = float(attention_seconds(batch, queries, keys, heads, key_heads, size, is_causal, format, gpu))
    flops = 4.0 * batch * heads * queries * keys * size * (0.5 if is_causal else 1.0)
    at_peak = flops / peak
    if is_backward:
        return Kernel(Kind.ATTENTION, BACKWARD * seconds, 2.5 * at_peak)
    return Kernel(Kind.ATTENTION, seconds, at_peak)


def _grouped(step: Instruction, operands: Tensors, results: Tensors, gpu: Gpu) -> Kernel:
    """Rows of all groups, and a matrix for each group. Rows are priced as if each group had as many."""
    rows = next(each.shape for each in operands if len(each.shape) == 2)
    weights = next((each.shape for each in (*operands, *results) if len(each.shape) == 3), (1, rows[-1], rows[-1]))
    groups, k, n = weights
    return _products(Kind.EXPERTS, groups, rows[0] / groups, n, k, results[0].dtype, gpu)


_PRODUCTS: dict[str, Callable[[Instruction, Tensors, Tensors, Gpu], Kernel]] = {
    "aten.mm.": _matmul,
    "aten.addmm.": _matmul,
    "aten.bmm.": _matmul,
    "aten.baddbmm.": _matmul,
    "aten.convolution": _convolution,
    "aten._scaled_dot_product_flash_attention": _fused_attention,
    "stretto.grouped_": _grouped,
}
