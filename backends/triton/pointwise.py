"""Torch's elementwise ops as Triton expressions: one table.

An expression's operands are names of values already cast to the op's compute dtype: float32 for every floating dtype
of at most 32 bits, float64 for float64, integers as they are, bool as int1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Expression = Callable[..., str]


def number(value: object) -> str:
    """A Python scalar as Triton text.

    >>> number(float("-inf")), number(1e-06), number(True)
    ('float("-inf")', '1e-06', '1')
    """
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f'float("{value}")'
    return repr(value)


def literal(value: bool | int | float, dtype: torch.dtype) -> str:
    """A Python scalar as torch converts it to a dtype.

    >>> literal(-100.0, torch.int64), literal(2, torch.float16)
    ('-100', '2.0')
    """
    if dtype is torch.bool:
        return "True" if value else "False"
    return number(float(value)) if dtype.is_floating_point else number(int(value))


def _power(x: str, exponent: str) -> str:
    """Powers that take no logarithm; KeyError for others."""
    return {
        2.0: f"{x} * {x}", 3.0: f"{x} * {x} * {x}", 4.0: f"({x} * {x}) * ({x} * {x})", 1.0: x, 0.5: f"tl.sqrt({x})",
        -0.5: f"1.0 / tl.sqrt({x})", -1.0: f"1.0 / {x}", -2.0: f"1.0 / ({x} * {x})",
    }[float(exponent)]  # fmt: skip


def _gelu(x: str, approximate: str = "none") -> str:
    if approximate == "tanh":
        return f"0.5 * {x} * (1.0 + tanh(0.7978845608028654 * ({x} + 0.044715 * {x} * {x} * {x})))"
    return f"0.5 * {x} * (1.0 + tl.erf({x} * 0.7071067811865476))"


def _gelu_backward(g: str, x: str, approximate: str = "none") -> str:
    if approximate == "tanh":
        return f"{g} * gelu_tanh_slope({x})"
    normal = f"tl.exp(-0.5 * {x} * {x}) * 0.3989422804014327"
    return f"{g} * (0.5 * (1.0 + tl.erf({x} * 0.7071067811865476)) + {x} * {normal})"


def _scaled(sign: str) -> Expression:
    def expression(x: str, y: str, alpha: str = "1") -> str:
        return f"{x} {sign} {y}" if alpha == "1" else f"{x} {sign} {alpha} * {y}"

    return expression


def _infix(sign: str) -> Expression:
    return lambda x, y: f"{x} {sign} {y}"


def _call(name: str, *more: str) -> Expression:
    return lambda *operands: f"{name}({', '.join([*operands, *more])})"


def _clamp(x: str, low: str | None = None, high: str | None = None) -> str:
    text = x
    if low is not None:
        text = f"tl.maximum({text}, {low}, propagate_nan=tl.PropagateNan.ALL)"
    if high is not None:
        text = f"tl.minimum({text}, {high}, propagate_nan=tl.PropagateNan.ALL)"
    return text


_NAN = "propagate_nan=tl.PropagateNan.ALL"

TABLE: dict[str, Expression] = {
    "add": _scaled("+"), "sub": _scaled("-"), "rsub": lambda x, y, alpha="1": _scaled("-")(y, x, alpha),
    "mul": _infix("*"), "div": _infix("/"), "neg": lambda x: f"-{x}", "abs": _call("tl.abs"),
    "reciprocal": lambda x: f"1.0 / {x}", "square": lambda x: f"{x} * {x}", "pow": _power,
    "exp": _call("tl.exp"), "log": _call("tl.log"), "sqrt": _call("tl.sqrt"), "rsqrt": lambda x: f"1.0 / tl.sqrt({x})",
    "sin": _call("tl.sin"), "cos": _call("tl.cos"), "erf": _call("tl.erf"), "tanh": _call("tanh"),
    "sigmoid": lambda x: f"1.0 / (1.0 + tl.exp(-{x}))", "silu": lambda x: f"{x} / (1.0 + tl.exp(-{x}))",
    "relu": lambda x: f"tl.where({x} < 0, 0, {x})", "gelu": _gelu, "gelu_backward": _gelu_backward,
    "silu_backward": lambda g, x: f"{g} * silu_slope({x})",
    "sigmoid_backward": lambda g, y: f"{g} * (1.0 - {y}) * {y}",
    "tanh_backward": lambda g, y: f"{g} * (1.0 - {y} * {y})",
    "threshold_backward": lambda g, x, threshold: f"tl.where({x} <= {threshold}, 0, {g})",
    "maximum": _call("tl.maximum", _NAN), "minimum": _call("tl.minimum", _NAN), "clamp": _clamp,
    "clamp_min": lambda x, low: _clamp(x, low), "clamp_max": lambda x, high: _clamp(x, None, high),
    "eq": _infix("=="), "ne": _infix("!="), "lt": _infix("<"), "le": _infix("<="),
    "gt": _infix(">"), "ge": _infix(">="),
    "logical_and": _infix("&"), "logical_or": _infix("|"), "logical_xor": _infix("^"),
    "bitwise_and": _infix("&"), "bitwise_or": _infix("|"), "bitwise_xor": _infix("^"),
    "logical_not": lambda x: f"{x} == 0",
}  # fmt: skip
"""By torch's name of an op without its overload, the expression of operands and constants in schema order."""

COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})
"""Their operands meet in the dtype that both promote to; their result is bool."""
LOGICAL = frozenset({"logical_and", "logical_or", "logical_xor", "logical_not"})
"""Their operands are taken as bool."""

HELPERS: dict[str, str] = {
    "tanh": '''@triton.jit
def tanh(x):
    """By its series near 0, where 1 - exp(-2 |x|) cancels."""
    t = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - t) / (1.0 + t)
    s = x * x
    high = 0.13333333333333333 - s * (0.05396825396825397 - s * 0.021869488536155203)
    near = x * (1.0 - s * (0.3333333333333333 - s * high))
    return tl.where(tl.abs(x) < 0.1, near, tl.where(x < 0, -far, far))
''',
    "silu_slope": '''@triton.jit
def silu_slope(x):
    """The derivative of x * sigmoid(x)."""
    s = 1.0 / (1.0 + tl.exp(-x))
    return s * (1.0 + x * (1.0 - s))
''',
    "gelu_tanh_slope": '''@triton.jit
def gelu_tanh_slope(x):
    """The derivative of gelu by its tanh approximation."""
    t = tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * 0.7978845608028654 * (1.0 + 0.134145 * x * x)
''',
    "maximum_or_nan": '''@triton.jit
def maximum_or_nan(x, y):
    """The larger; NaN if one of them is, as torch has it."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)
''',
    "minimum_or_nan": '''@triton.jit
def minimum_or_nan(x, y):
    """The smaller; NaN if one of them is, as torch has it."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)
''',
}
"""Functions that expressions call, by name, in an order in which each comes behind those that it calls."""


def helpers_of(lines: Sequence[str]) -> list[str]:
    """The sources of the helpers that lines of a kernel call, each behind those that it calls itself."""
    text = "\n".join(lines)
    used: list[str] = []
    for name in reversed(HELPERS):
        if f" {name}(" in f" {text}" or f"({name}(" in text or f", {name})" in text or f"({name}" in text:
            used.insert(0, name)
            text += HELPERS[name]
    return [HELPERS[name] for name in used]
