"""Ops that tracing takes apart give the values, shapes and gradients of the ops; a new one cannot join unlisted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._decomp
import torch.nn.functional as F
from stretto.frontend.capture.decompositions import decompositions
from torch import Tensor, nn
from torch._C import DispatchKey
from torch._dispatch.python import enable_python_dispatcher
from torch.utils._pytree import tree_leaves

Case = tuple[Callable[..., Any], tuple[Tensor, ...]]

DRAWS = {"dropout"}
"""Ops whose numbers the program's own generator draws; tests/frontend/capture/test_seeding.py has them."""


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


TIED = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 2.0, 0.0, 0.0]], dtype=torch.float64)
SPECIAL = torch.tensor(
    [0.5, -0.5, 0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1.0, -1.0], dtype=torch.float64
)
LABELS = torch.tensor([0, 3, 4, 1, 2, 2])
LISTS = torch.tensor(
    [[0, 1, 2, 3, 4], [2, -1, 1, 1, 1], [-1, 0, 0, 0, 0], [3, 3, -1, 0, 1], [0, -1, -1, -1, -1], [4, 2, 0, -1, 3]]
)


def shrink(function: Callable[..., Tensor]) -> Iterator[Case]:
    yield from ((lambda x, bound=bound: function(x, bound), (SPECIAL,)) for bound in (0.5, 0.0))


def margin_losses() -> Iterator[Case]:
    for reduction in ("none", "mean", "sum"):
        for p, weight in ((1, None), (2, rows(5).exp()), (1, rows(5))):
            options = {"p": p, "weight": weight, "margin": 0.7, "reduction": reduction}
            yield lambda x, options=options: F.multi_margin_loss(x, LABELS, **options), (rows(6, 5),)
            yield lambda x, options=options: F.multi_margin_loss(x, LABELS[1], **options), (rows(5),)
        yield lambda x, r=reduction: F.multi_margin_loss(x, LABELS[:2] * 0, reduction=r), (TIED,)


def multilabel_losses() -> Iterator[Case]:
    for reduction in ("none", "mean", "sum"):
        yield lambda x, r=reduction: F.multilabel_margin_loss(x, LISTS, reduction=r), (rows(6, 5),)
        yield lambda x, r=reduction: F.multilabel_margin_loss(x, LISTS[1], reduction=r), (rows(5),)
        yield lambda x, r=reduction: F.multilabel_margin_loss(x, LISTS[:2], reduction=r), (TIED,)


def recurrent(kind: Callable[..., nn.Module], **options: Any) -> Iterator[Case]:
    for more in ({}, {"bias": False, "bidirectional": True}, {"num_layers": 2, "batch_first": True}):
        model = kind(5, 4, **options, **more).double()
        yield model, (rows(3, 2, 5),)
        yield model, (rows(3, 5),)
    packed = kind(5, 4, **options).double()
    yield lambda x: packed(nn.utils.rnn.pack_padded_sequence(x, [3, 1]))[0].data, (rows(3, 2, 5),)


def batch_norms() -> Iterator[Case]:
    for training in (True, False):
        statistics = rows(5), rows(5).exp()
        yield (
            lambda x, w, b, t=training, s=statistics: F.batch_norm(x, s[0].clone(), s[1].clone(), w, b, t, 0.3, 1e-3),
            (rows(6, 5), rows(5), rows(5)),
        )
    yield lambda x: F.batch_norm(x, None, None, None, None, True), (rows(6, 5),)


def products() -> Iterator[Case]:
    x = rows(6, 5)
    pairs = [(x, x[0]), (x[0], x[0]), (x[0], x.T), (x[None], x.T), (x[:, :0], x.T[:0]), (x.expand(2, 6, 5), x.T[None])]
    yield from ((torch.matmul, pair) for pair in pairs)


def padded() -> Iterator[Case]:
    for batch_first in (True, False):
        for side in ("left", "right"):
            yield (
                lambda a, b, first=batch_first, side=side: nn.utils.rnn.pad_sequence([a, b], first, 0.5, side),
                (rows(6, 5), rows(2, 5)),
            )


def spectra() -> Iterator[Case]:
    window = torch.hann_window(6, dtype=torch.float64)
    for center, mode, normalized, one_sided in ((True, "reflect", True, True), (False, "constant", False, False)):
        options = {"center": center, "pad_mode": mode, "normalized": normalized, "onesided": one_sided}
        yield (
            lambda x, options=options: torch.view_as_real(
                torch.stft(x, 8, 3, 6, window, return_complex=True, **options)
            ),
            (rows(2, 40),),
        )


def signals() -> Iterator[Case]:
    window = torch.hann_window(8, dtype=torch.float64)
    spectrum = torch.view_as_real(torch.stft(rows(2, 40), 8, 2, 8, window, return_complex=True))
    for length in (None, 40, 37):
        yield lambda x, n=length: torch.istft(torch.view_as_complex(x), 8, 2, 8, window, length=n), (spectrum,)


def images(mode: str, *options: dict[str, Any]) -> Iterator[Case]:
    sizes: list[dict[str, Any]] = [{"size": (9, 4)}, {"scale_factor": (1.7, 0.6)}]
    for option in options or ({},):
        for size in sizes:
            yield lambda x, given={**size, **option}: F.interpolate(x, mode=mode, **given), (rows(2, 3, 5, 7),)


CORNERS = ({"align_corners": True}, {"align_corners": False})
CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "hardshrink": lambda: shrink(F.hardshrink),
    "softshrink": lambda: shrink(F.softshrink),
    "multi_margin_loss": margin_losses,
    "multilabel_margin_loss_forward": multilabel_losses,
    "lstm": lambda: recurrent(nn.LSTM),
    "gru": lambda: recurrent(nn.GRU),
    "rnn_tanh": lambda: recurrent(nn.RNN),
    "rnn_relu": lambda: recurrent(nn.RNN, nonlinearity="relu"),
    "native_batch_norm": batch_norms,
    "matmul": products,
    "pad_sequence": padded,
    "stft": spectra,
    "istft": signals,
    "one_hot": lambda: ((lambda x, n=n: F.one_hot(LABELS, n) * x, (rows(6, max(n, 5)),)) for n in (-1, 7)),
    "broadcast_tensors": lambda: iter([(torch.broadcast_tensors, (rows(6, 5), rows(5)))]),
    "tensor_split": lambda: iter([(lambda x: torch.tensor_split(x, torch.tensor([1, 4])), (rows(6, 5),))]),
    "unsafe_chunk": lambda: iter([(lambda x: torch.unsafe_chunk(x, 4), (rows(6, 5),))]),
    "_upsample_bicubic2d_aa": lambda: images("bicubic", {"antialias": True}),
    "_upsample_bilinear2d_aa": lambda: images("bilinear", {"antialias": True}),
    "upsample_bicubic2d": lambda: images("bicubic", *CORNERS),
    "upsample_bilinear2d": lambda: images("bilinear", *CORNERS),
    "upsample_nearest2d": lambda: images("nearest"),
    "_upsample_nearest_exact2d": lambda: images("nearest-exact"),
}  # fmt: skip
ONE_OR_THREE_DIMS = {
    f"{kind}{dims}d"
    for kind, all_dims in (
        ("upsample_nearest", (1, 3)), ("_upsample_nearest_exact", (1, 3)),
        ("upsample_linear", (1,)), ("upsample_trilinear", (3,)),
    )
    for dims in all_dims
}  # fmt: skip
"""Written by the same functions of torch as those of two dims."""
ELSEWHERE = {"cudnn_batch_norm", "_upsample_lanczos2d_aa"}
"""Called by no module on this device, or by none of this version."""


def test_every_op_that_tracing_takes_apart_is_listed() -> None:
    """Of those that torch registers, in any version."""
    keys = {DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd}
    packets = (getattr(torch.ops.aten, name) for name in dir(torch.ops.aten))
    found = {
        packet.__name__
        for packet in packets
        if isinstance(packet, torch._ops.OpOverloadPacket)
        and any(keys & getattr(packet, name).py_kernels.keys() for name in packet.overloads() if name != "out")
    }
    assert found - CASES.keys() - DRAWS - ONE_OR_THREE_DIMS - ELSEWHERE == set()
    assert len(found & CASES.keys()) > 15


@pytest.mark.parametrize("symbols", [False, True], ids=["sizes", "symbols"])
@pytest.mark.parametrize("name", CASES)
def test_an_op_taken_apart_is_the_op(name: str, symbols: bool) -> None:
    for function, inputs in CASES[name]():
        eager = values_and_gradients(function, inputs)
        with decompositions(symbols), enable_python_dispatcher():
            traced = values_and_gradients(function, inputs)
        for mine, theirs in zip(traced, eager, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12, equal_nan=True)


def values_and_gradients(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    results = [y for y in tree_leaves(function(*leaves)) if isinstance(y, Tensor)]
    tangents = [(0.5 + 0.37 * torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape) for y in results]
    return [*results, *torch.autograd.grad(results, leaves, tangents)]
