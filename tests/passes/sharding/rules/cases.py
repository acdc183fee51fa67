"""Representative calls beside those of the models' graphs; extents are odd, so that shards are uneven."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .nn_reference import OPS

EPS = 1e-5
GROUPS = torch.tensor([2, 3, 7])
CallParts = tuple[str, tuple[Any, ...], dict[str, Any]]


def f(*shape: int) -> Tensor:
    """Random numbers."""
    return torch.randn(*shape, dtype=torch.float64)


def ints(high: int, *shape: int) -> Tensor:
    """Random indices below `high`."""
    return torch.randint(0, high, shape)


def _labels(n: int, classes: int) -> Tensor:
    labels = ints(classes, n)
    labels[1] = -100
    return labels


def _attention(heads: int, key_heads: int, mask: Tensor | None, causal: bool = False) -> tuple[Any, ...]:
    return f(3, heads, 5, 4), f(3, key_heads, 5, 4), f(3, key_heads, 5, 4), mask, causal, None


def _attention_backward(heads: int, key_heads: int, mask: Tensor | None, causal: bool = False) -> tuple[Any, ...]:
    q, k, v, *rest = _attention(heads, key_heads, mask, causal)
    out, lse = OPS["nn.attention"](q, k, v, *rest)
    return f(3, heads, 5, 4), q, k, v, out, lse, *rest


def _cpu_attention(mask: Tensor | None, causal: bool) -> CallParts:
    q = f(3, 5, 6, 4)
    kwargs = {} if mask is None else {"attn_mask": mask}
    return (
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        (q, f(3, 5, 6, 4), f(3, 5, 6, 4), 0.0, causal),
        kwargs,
    )


def _cpu_attention_backward(mask: Tensor | None, causal: bool) -> CallParts:
    _, (q, k, v, p, _), kwargs = _cpu_attention(mask, causal)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, p, causal, **kwargs)
    name = "aten._scaled_dot_product_flash_attention_for_cpu_backward.default"
    return name, (f(3, 5, 6, 4), q, k, v, out, lse, p, causal), kwargs


def _rms_backward() -> tuple[Any, ...]:
    x, weight = f(3, 5, 4), f(4)
    return f(3, 5, 4), x, OPS["nn.rms_norm"](x, weight, EPS)[1], weight


def _layer_backward(weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
    x = f(3, 5, 4)
    _, mean, rstd = torch.native_layer_norm(x, [4], weight, bias, EPS)
    return f(3, 5, 4), x, mean, rstd, weight, bias, [4]


def _aten_layer_backward(mask: list[bool]) -> tuple[Any, ...]:
    dy, x, mean, rstd, weight, bias, shape = _layer_backward(f(4), f(4))
    return dy, x, shape, mean, rstd, weight, bias, mask


def _cross_entropy_backward() -> tuple[Any, ...]:
    logits, labels = f(7, 5), _labels(7, 5)
    return f(1)[0], logits, labels, OPS["nn.cross_entropy"](logits, labels, -100)[2], -100


def _softmax_backward(op: str) -> CallParts:
    y = f(3, 5, 4).softmax(1)
    return op, (f(3, 5, 4), y.log() if "log" in op else y, 1, torch.float64), {}


def _max_pool_backward() -> tuple[Any, ...]:
    x = f(3, 5, 6, 6)
    y, where = torch.ops.aten.max_pool2d_with_indices(x, [2, 2])
    return f(*y.shape), x, [2, 2], [2, 2], [0, 0], [1, 1], False, where


def _convolution(transposed: bool = False, groups: int = 1, bias: bool = True) -> CallParts:
    weight = f(4, 6 // groups, 3, 3) if transposed else f(6, 4 // groups, 3, 3)
    spaces = [1, 1], [1, 1], [1, 1], transposed, [0, 0], groups
    return "aten.convolution.default", (f(3, 4, 5, 5), weight, f(6) if bias else None, *spaces), {}


def _convolution_backward(transposed: bool = False, groups: int = 1, mask: tuple[bool, ...] = (True,) * 3) -> CallParts:
    _, (x, weight, _, *spaces), _ = _convolution(transposed, groups)
    return "aten.convolution_backward.default", (f(3, 6, 5, 5), x, weight, [6], *spaces, list(mask)), {}


def _group_norm_backward(mask: tuple[bool, ...] = (True,) * 3) -> CallParts:
    x, weight = f(3, 6, 5), f(6)
    _, mean, rstd = torch.ops.aten.native_group_norm(x, weight, None, 3, 6, 5, 3, EPS)
    return "aten.native_group_norm_backward.default", (f(3, 6, 5), x, mean, rstd, weight, 3, 6, 5, 3, list(mask)), {}


def _batch_norm_backward(train: bool) -> CallParts:
    x, running = f(3, 6, 5), (f(6), f(6).abs())
    saved = (x.mean((0, 2)), (x.var((0, 2), correction=0) + EPS).rsqrt()) if train else (f(0), f(0))
    args = (f(3, 6, 5), x, f(6), *running, *saved, train, EPS, [True, True, True])
    return "aten.native_batch_norm_backward.default", args, {}


_VIEWS: dict[str, tuple[Tensor, list[int]]] = {
    "flatten the leading dims": (f(4, 3, 6), [12, 6]),
    "unflatten a dim": (f(4, 18), [4, 6, 3]),
    "flatten and unflatten": (f(4, 3, 2, 9), [12, 6, 3]),
    "regroup": (f(4, 6), [6, 4]),
    "ones between": (f(4, 1, 6), [1, 4, 6, 1]),
    "uneven": (f(5, 7), [35]),
    "uneven heads": (f(3, 35), [3, 5, 7]),
}

_ATEN: dict[str, Callable[[], tuple[Any, ...]]] = {
    "aten.mm.default": lambda: (f(5, 3), f(3, 7)),
    "aten.addmm.default": lambda: (f(7), f(5, 3), f(3, 7)),
    "aten.bmm.default": lambda: (f(3, 5, 7), f(3, 7, 5)),
    "aten.baddbmm.default": lambda: (f(3, 5, 5), f(3, 5, 7), f(3, 7, 5)),
    "aten.expand.default": lambda: (f(3, 1, 5), [7, 3, 5, -1]),
    "aten.permute.default": lambda: (f(3, 5, 7), [2, 0, -2]),
    "aten.transpose.int": lambda: (f(3, 5, 7), -1, 0),
    "aten.t.default": lambda: (f(3, 5),),
    "aten.squeeze.default": lambda: (f(3, 1, 2),),
    "aten.squeeze.dim": lambda: (f(3, 2, 2), 1),
    "aten.squeeze.dims": lambda: (f(3, 1, 2), [0, 1]),
    "aten.unsqueeze.default": lambda: (f(3, 5), -2),
    "aten.slice.Tensor": lambda: (f(3, 5, 7), 1, 1, 4),
    "aten.select.int": lambda: (f(3, 5, 7), -2, -1),
    "aten.slice_backward.default": lambda: (f(3, 2, 7), [3, 5, 7], 1, 1, 4, 2),
    "aten.select_backward.default": lambda: (f(3, 7), [3, 5, 7], 1, 2),
    "aten.slice_scatter.default": lambda: (f(3, 5, 7), f(3, 2, 7), 1, 1, 3),
    "aten.select_scatter.default": lambda: (f(3, 5, 7), f(3, 7), 1, 2),
    "aten.cat.default": lambda: ([f(3, 5), f(3, 2), f(0)], 1),
    "aten.stack.default": lambda: ([f(3, 5), f(3, 5)], 1),
    "aten.split.Tensor": lambda: (f(3, 5, 7), 2, -1),
    "aten.split_with_sizes.default": lambda: (f(3, 5, 7), [3, 2], 1),
    "aten.unbind.int": lambda: (f(3, 2, 5), 1),
    "aten.constant_pad_nd.default": lambda: (f(3, 5, 7), [1, 0, 2, 2]),
    "aten.repeat.default": lambda: (f(3, 5), [2, 3, 1]),
    "aten.clone.default": lambda: (f(3, 5),),
    "aten.alias.default": lambda: (f(3, 5),),
    "aten.detach.default": lambda: (f(3, 5),),
    "aten.lift_fresh_copy.default": lambda: (f(3, 5),),
    "aten.full.default": lambda: ([3, 5], 2.5),
    "aten.zeros.default": lambda: ([3, 5],),
    "aten.ones.default": lambda: ([3, 5],),
    "aten.arange.default": lambda: (5,),
    "aten.arange.start_step": lambda: (1, 9, 2),
    "aten.scalar_tensor.default": lambda: (2.5,),
    "aten.full_like.default": lambda: (f(3, 5), 2.5),
    "aten.zeros_like.default": lambda: (f(3, 5),),
    "aten.ones_like.default": lambda: (f(3, 5),),
    "aten.new_zeros.default": lambda: (f(3, 5), [5, 7]),
    "aten.new_ones.default": lambda: (f(3, 5), [5, 7]),
    "aten.new_full.default": lambda: (f(3, 5), [5, 7], 2.5),
    "aten._assert_tensor_metadata.default": lambda: (f(3, 5),),
    "aten.tril.default": lambda: (f(3, 5, 7),),
    "aten.triu.default": lambda: (f(3, 5, 7), 1),
    "aten.flip.default": lambda: (f(3, 5), [1]),
    "aten.roll.default": lambda: (f(3, 5), [2], [1]),
    "aten.embedding.default": lambda: (f(7, 5), ints(7, 3, 5)),
    "aten.embedding_dense_backward.default": lambda: (f(3, 5, 4), ints(7, 3, 5), 7, -1, False),
    "aten.index.Tensor": lambda: (f(3, 5, 7), [None, ints(5, 4, 3)]),
    "aten.index_put.default": lambda: (f(3, 5, 7), [None, ints(5, 4)], f(4, 7), True),
    "aten.index_select.default": lambda: (f(3, 5, 7), 1, ints(5, 4)),
    "aten.gather.default": lambda: (f(3, 5, 7), 1, ints(5, 3, 2, 7)),
    "aten.scatter.value": lambda: (f(3, 5, 7), 1, ints(5, 3, 2, 7), 0.0),
    "aten.scatter.src": lambda: (f(3, 5, 7), 1, torch.arange(2).expand(3, 7, 2).mT, f(3, 2, 7)),
    "aten.scatter_add.default": lambda: (f(3, 5, 7), 1, ints(5, 3, 2, 7), f(3, 2, 7)),
    "aten.sum.default": lambda: (f(3, 5, 7),),
    "aten.sum.dim_IntList": lambda: (f(3, 5, 7), [0, -1]),
    "aten.mean.default": lambda: (f(3, 5),),
    "aten.mean.dim": lambda: (f(3, 5, 7), [1], True),
    "aten.amax.default": lambda: (f(3, 5, 7), [1]),
    "aten.amin.default": lambda: (f(3, 5, 7), [1], True),
    "aten.max.default": lambda: (f(3, 5),),
    "aten.max.dim": lambda: (f(3, 5, 7), 1),
    "aten.argmax.default": lambda: (f(3, 5, 7), 1),
    "aten.var.correction": lambda: (f(3, 5, 7), [1]),
    "aten.var_mean.correction": lambda: (f(3, 5, 7), [1]),
    "aten.prod.dim_int": lambda: (f(3, 5, 7), 1),
    "aten.any.dim": lambda: (f(3, 5) > 0, 1),
    "aten.logsumexp.default": lambda: (f(3, 5, 7), [1]),
    "aten.linalg_vector_norm.default": lambda: (f(3, 5, 7), 2, [1]),
    "aten.cumsum.default": lambda: (f(3, 5, 7), 1),
    "aten.topk.default": lambda: (f(3, 5), 2),
    "aten.sort.default": lambda: (f(3, 5), 0),
    "aten._softmax.default": lambda: (f(3, 5, 7), 1, False),
    "aten._log_softmax.default": lambda: (f(3, 5, 7), -1, False),
    "aten.nll_loss_forward.default": lambda: (f(7, 5), _labels(7, 5), None, 2, -100),
    "aten.nll_loss_backward.default": lambda: (f(1)[0], f(7, 5), _labels(7, 5), None, 1, -100, f(1)[0].abs() + 6),
    "aten.native_layer_norm.default": lambda: (f(3, 5, 4), [4], f(4), f(4), 1e-5),
    "aten.native_layer_norm_backward.default": lambda: _aten_layer_backward([True, True, True]),
    "aten.neg.default": lambda: (f(3, 5),),
    "aten.exp.default": lambda: (f(3, 5),),
    "aten.rsqrt.default": lambda: (f(3, 5).abs(),),
    "aten.pow.Tensor_Scalar": lambda: (f(3, 5), 2),
    "aten.pow.Tensor_Tensor": lambda: (f(3, 5).abs(), f(5)),
    "aten.mul.Tensor": lambda: (f(3, 5), f(3, 1)),
    "aten.mul.Scalar": lambda: (f(3, 5), 2.5),
    "aten.div.Tensor": lambda: (f(3, 5), f(5)),
    "aten.div.Scalar": lambda: (f(3, 5), 2.5),
    "aten.add.Tensor": lambda: (f(3, 5), f(5)),
    "aten.add.Scalar": lambda: (f(3, 5), 2.5),
    "aten.sub.Tensor": lambda: (f(3, 5), f(3, 1)),
    "aten.rsub.Scalar": lambda: (f(3, 5), 2.5),
    "aten.where.self": lambda: (f(5) > 0, f(3, 5), f(3, 1)),
    "aten.masked_fill.Scalar": lambda: (f(3, 5), f(5) > 0, 0),
    "aten.where.ScalarOther": lambda: (f(3, 5) > 0, f(5), 2.0),
    "aten.where.ScalarSelf": lambda: (f(5) > 0, 2.0, f(3, 5)),
    "aten.eq.Scalar": lambda: (ints(3, 3, 5), 1),
    "aten.lt.Tensor": lambda: (f(3, 5), f(5)),
    "aten.logical_and.default": lambda: (f(3, 5) > 0, f(5) > 0),
    "aten.logical_not.default": lambda: (f(3, 5) > 0,),
    "aten.bitwise_not.default": lambda: (f(3, 5) > 0,),
    "aten.maximum.default": lambda: (f(3, 5), f(3, 5)),
    "aten.clamp.default": lambda: (f(3, 5), -0.5, 0.5),
    "aten.abs.default": lambda: (f(3, 5),),
    "aten.relu.default": lambda: (f(3, 5),),
    "aten.sigmoid.default": lambda: (f(3, 5),),
    "aten.silu_backward.default": lambda: (f(3, 5), f(3, 5)),
    "aten.gelu_backward.default": lambda: (f(3, 5), f(3, 5)),
    "aten.tanh_backward.default": lambda: (f(3, 5), f(3, 5)),
    "aten.sigmoid_backward.default": lambda: (f(3, 5), f(3, 5)),
    "aten.threshold_backward.default": lambda: (f(3, 5), f(3, 5), 0),
    "aten.convolution.default": lambda: (f(3, 4, 5, 5), f(6, 4, 3, 3), f(6), [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    "aten.convolution_backward.default": lambda: (
        f(3, 6, 5, 5),
        f(3, 4, 5, 5),
        f(6, 4, 3, 3),
        [6],
        [1, 1],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        1,
        [True, True, True],
    ),
    "aten.max_pool2d_with_indices.default": lambda: (f(3, 5, 6, 6), [2, 2]),
    "aten.avg_pool2d.default": lambda: (f(3, 5, 6, 6), [2, 2]),
    "aten._adaptive_avg_pool2d.default": lambda: (f(3, 5, 6, 6), [3, 3]),
    "aten.upsample_nearest2d.default": lambda: (f(3, 5, 3, 3), [6, 6]),
    "aten.upsample_bilinear2d.default": lambda: (f(3, 5, 3, 3), [6, 6], False),
    "aten.native_group_norm.default": lambda: (f(3, 6, 5), f(6), f(6), 3, 6, 5, 2, 1e-5),
    "aten.native_batch_norm.default": lambda: (f(3, 6, 5), f(6), f(6), None, None, True, 0.1, 1e-5),
    "aten._native_batch_norm_legit_no_training.default": lambda: (f(3, 6, 5), f(6), f(6), f(6), f(6).abs(), 0.1, 1e-5),
    "aten.dot.default": lambda: (f(5), f(5)),
    "aten.index_fill.int_Scalar": lambda: (f(3, 5), 1, ints(5, 2), 1.5),
    "aten.diagonal.default": lambda: (f(3, 5, 5), 0, 1, 2),
    "aten.median.dim": lambda: (f(3, 5), 1),
    "aten.kthvalue.default": lambda: (f(3, 5), 2, 1),
    "aten.histc.default": lambda: (f(3, 5), 4, -1.0, 1.0),
    "aten.max_pool2d_with_indices_backward.default": lambda: _max_pool_backward(),
    "aten.bucketize.Tensor": lambda: (f(3, 5), f(4).sort().values),
    "aten.floor_divide.default": lambda: (ints(9, 3, 5), ints(9, 5) + 1),
    "aten.fill.Scalar": lambda: (f(3, 5), 2.5),
    "aten.copy.default": lambda: (f(3, 5), f(5)),
    "aten.hardswish.default": lambda: (f(3, 5),),
    "aten.leaky_relu_backward.default": lambda: (f(3, 5), f(3, 5), 0.1, False),
    "aten.log_sigmoid_forward.default": lambda: (f(3, 5),),
    "aten._prelu_kernel.default": lambda: (f(3, 5), f(5)),
    "aten._prelu_kernel_backward.default": lambda: (f(3, 5), f(3, 5), f(3, 5)),
    "aten.glu.default": lambda: (f(3, 4, 5), 1),
    "aten.glu_backward.default": lambda: (f(3, 2, 5), f(3, 4, 5), 1),
    "aten.pixel_shuffle.default": lambda: (f(3, 4, 5, 5), 2),
    "aten.im2col.default": lambda: (f(3, 4, 5, 5), [3, 3], [1, 1], [0, 0], [1, 1]),
    "aten.col2im.default": lambda: (f(3, 36, 9), [5, 5], [3, 3], [1, 1], [0, 0], [1, 1]),
    "aten.unfold.default": lambda: (f(3, 5, 7), 1, 2, 1),
    "aten.unfold_backward.default": lambda: (f(3, 4, 7, 2), [3, 5, 7], 1, 2, 1),
    "aten._weight_norm_interface.default": lambda: (f(3, 5), f(3, 1), 0),
    "aten.index_add.default": lambda: (f(3, 5, 7), 1, ints(5, 4), f(3, 4, 7)),
    "aten.index_copy.default": lambda: (f(3, 5, 7), 1, torch.tensor([4, 0, 2]), f(3, 3, 7)),
    "aten.std_mean.correction": lambda: (f(3, 5, 7), [1]),
    "aten.mish_backward.default": lambda: (f(3, 5), f(3, 5)),
    "aten.scatter_reduce.two": lambda: (f(3, 5, 7), 1, ints(5, 3, 2, 7), f(3, 2, 7), "sum"),
    "aten.linalg_cross.default": lambda: (f(5, 4, 3), f(5, 4, 3)),
    "aten.mv.default": lambda: (f(3, 5), f(5)),
    "aten.searchsorted.Tensor": lambda: (f(4).sort().values, f(3, 5)),
    "aten.lerp.Scalar": lambda: (f(3, 5), f(3, 5), 0.3),
    "aten.addcmul.default": lambda: (f(3, 5), f(3, 5), f(5)),
    "aten.remainder.Scalar": lambda: (f(3, 5), 2),
    "aten.floor.default": lambda: (f(3, 5),),
    "nn.attention": lambda: _attention(5, 5, None, True),
    "nn.attention_backward": lambda: _attention_backward(5, 5, None, True),
    "nn.merge_attention": lambda: (f(3, 5, 4, 2), f(3, 5, 4), f(3, 5, 4), f(3, 5, 4, 2), f(3, 5, 4)),
    "nn.rms_norm": lambda: (f(3, 5, 4), f(4), EPS),
    "nn.rms_norm_backward": _rms_backward,
    "nn.layer_norm": lambda: (f(3, 5, 4), f(4), f(4), [4], EPS),
    "nn.layer_norm_backward": lambda: _layer_backward(f(4), f(4)),
    "nn.rotary": lambda: (f(3, 5, 7, 4), f(3, 7, 4), f(3, 7, 4)),
    "nn.rotary_backward": lambda: (f(3, 5, 7, 4), f(1, 7, 4), f(1, 7, 4)),
    "nn.matmul": lambda: (f(3, 5, 7, 4), f(3, 5, 4, 6)),
    "nn.cross_entropy": lambda: (f(7, 5), _labels(7, 5), -100),
    "nn.cross_entropy_backward": _cross_entropy_backward,
    "nn.nll_loss": lambda: (f(3, 7, 5), _labels(21, 5).view(3, 7), f(5).abs(), -100),
    "nn.nll_loss_backward": lambda: (f(3, 7), f(3, 7, 5), _labels(21, 5).view(3, 7), f(5).abs(), -100),
}

_MORE: dict[str, Callable[[], CallParts]] = {
    "cast of floats": lambda: ("aten._to_copy.default", (f(3, 5),), {"dtype": torch.float64}),
    "cast of ints": lambda: ("aten._to_copy.default", (ints(9, 3, 5),), {"dtype": torch.float64}),
    "cast to ints": lambda: ("aten._to_copy.default", (f(3, 5),), {"dtype": torch.int64}),
    "sum of ints": lambda: ("aten.sum.default", (ints(9, 3, 5),), {}),
    "count": lambda: ("aten.sum.dim_IntList", (f(3, 5) > 0, [1]), {}),
    "largest int": lambda: ("aten.amax.default", (ints(9, 3, 5), [1]), {}),
    "slice of all but the last": lambda: ("aten.slice.Tensor", (f(3, 8), 1, 0, -1), {}),
    "slice of the first": lambda: ("aten.slice.Tensor", (f(3, 9), 1, 0, 7), {}),
    "gradient of all but the last": lambda: ("aten.slice_backward.default", (f(3, 7), [3, 8], 1, 0, -1, 1), {}),
    "gradient of the first": lambda: ("aten.slice_backward.default", (f(3, 7), [3, 9], 1, 0, 7, 1), {}),
    "slice that takes all": lambda: ("aten.slice.Tensor", (f(3, 5), 0, 0, 9223372036854775807), {}),
    "index by two tensors that broadcast": lambda: ("aten.index.Tensor", (f(3, 5, 7), [ints(3, 4, 1), ints(5, 3)]), {}),
    "index apart": lambda: ("aten.index.Tensor", (f(3, 5, 7), [ints(3, 4), None, ints(7, 4)]), {}),
    "index_put of a scalar": lambda: ("aten.index_put.default", (f(3, 5), [ints(3, 2)], f(1)[0]), {}),
    "scatter of ones": lambda: ("aten.scatter.value", (f(3, 5), 1, ints(5, 3, 2), 1.0), {}),
    "padding with ones": lambda: ("aten.constant_pad_nd.default", (f(3, 5), [1, 1], 1.0), {}),
    "add with alpha": lambda: ("aten.add.Tensor", (f(3, 5), f(5)), {"alpha": 2}),
    **{
        f"convolution{' transposed' * transposed}, {groups} groups{', no bias' * (not bias)}": (
            lambda t=transposed, g=groups, b=bias: _convolution(t, g, b)
        )
        for transposed in (False, True) for groups in (1, 2) for bias in (True, False)
    },
    **{
        f"convolution backward{' transposed' * transposed}, {groups} groups": (
            lambda t=transposed, g=groups: _convolution_backward(t, g)
        )
        for transposed in (False, True) for groups in (1, 2)
    },
    "convolution backward of the weight alone": lambda: _convolution_backward(groups=2, mask=(False, True, False)),
    "group norm backward": _group_norm_backward,
    "group norm backward of the weight alone": lambda: _group_norm_backward((False, True, True)),
    "batch norm backward while training": lambda: _batch_norm_backward(True),
    "batch norm backward": lambda: _batch_norm_backward(False),
    "upsample backward": lambda: (
        "aten.upsample_nearest2d_backward.default", (f(3, 5, 6, 6), [6, 6], [3, 5, 3, 3]), {}
    ),
    "bilinear upsample backward": lambda: (
        "aten.upsample_bilinear2d_backward.default", (f(3, 5, 6, 6), [6, 6], [3, 5, 3, 3], False), {}
    ),
    "pool of one dim": lambda: ("aten._adaptive_avg_pool3d.default", (f(3, 2, 4, 4, 4), [2, 2, 2]), {}),
    "pool that keeps a dim": lambda: ("aten._adaptive_avg_pool3d.default", (f(3, 2, 4, 7, 3), [2, 7, 3]), {}),
    "largest of a dim that stays": lambda: ("aten.adaptive_max_pool2d.default", (f(3, 2, 7, 5), [7, 5]), {}),
    "resampling that keeps a dim": lambda: ("aten.upsample_nearest2d.default", (f(3, 5, 4, 3), [4, 6]), {}),
    "its backward": lambda: ("aten.upsample_nearest2d_backward.default", (f(3, 5, 4, 6), [4, 6], [3, 5, 4, 3]), {}),
    "reflection": lambda: ("aten.reflection_pad2d.default", (f(3, 5, 4, 4), [1, 1, 1, 1]), {}),
    "grouped product": lambda: ("stretto.grouped_mm.default", (f(7, 5), f(3, 5, 4), GROUPS), {}),
    "product by expert": lambda: ("nn.expert_linear", (f(7, 5), f(3, 5, 4), ints(3, 7), None), {}),
    "product by expert of rows in two dims": lambda: ("nn.expert_linear", (f(5, 3, 6), f(3, 6, 4), ints(3, 5, 3)), {}),
    "outer products by expert": lambda: ("nn.expert_outer_products", (f(7, 5), f(7, 4), ints(3, 7), f(3, 5, 4)), {}),
    "grouped product backward": lambda: (
        "stretto.grouped_mm_backward.default", (f(7, 5), f(3, 5, 4), GROUPS, f(7, 4)), {}
    ),
    "unsafe index": lambda: ("aten._unsafe_index.Tensor", (f(3, 5, 4, 7), [None, None, ints(4, 6, 1), ints(7, 5)]), {}),
    "unsafe index_put": lambda: (
        "aten._unsafe_index_put.default",
        (f(3, 5, 4, 7), [None, None, ints(4, 6, 1), ints(7, 5)], f(3, 5, 6, 5), True), {},
    ),
    "softmax backward": lambda: _softmax_backward("aten._softmax_backward_data.default"),
    "log_softmax backward": lambda: _softmax_backward("aten._log_softmax_backward_data.default"),
    "nll_loss with weights": lambda: (
        "aten.nll_loss_forward.default", (f(7, 5), _labels(7, 5), f(5).abs(), 2, -100), {}
    ),
    "nll_loss of each row": lambda: (
        "aten.nll_loss_forward.default", (f(7, 5), _labels(7, 5), f(5).abs(), 0, -100), {}
    ),
    "nll_loss backward with weights": lambda: (
        "aten.nll_loss_backward.default", (f(1)[0], f(7, 5), _labels(7, 5), f(5).abs(), 2, -100, f(1)[0].abs() + 6), {}
    ),
    "nll_loss backward of each row": lambda: (
        "aten.nll_loss_backward.default", (f(7), f(7, 5), _labels(7, 5), f(5).abs(), 0, -100, f(1)[0].abs() + 6), {}
    ),
    "losses of an image": lambda: (
        "aten.nll_loss2d_forward.default", (f(3, 4, 5, 7), ints(4, 3, 5, 7), f(4).abs(), 2, 1), {}
    ),
    "losses of an image's points": lambda: (
        "aten.nll_loss2d_forward.default", (f(3, 4, 5, 7), ints(4, 3, 5, 7), None, 0, 1), {}
    ),
    "losses of an image's points backward": lambda: (
        "aten.nll_loss2d_backward.default",
        (f(3, 5, 7), f(3, 4, 5, 7), ints(4, 3, 5, 7), f(4).abs(), 0, 1, f(1)[0]), {},
    ),
    "losses of an image backward": lambda: (
        "aten.nll_loss2d_backward.default",
        (f(1)[0], f(3, 4, 5, 7), ints(4, 3, 5, 7), f(4).abs(), 2, 1, f(1)[0]), {},
    ),
    "losses of rows without weights": lambda: ("nn.nll_loss", (f(3, 7, 5), _labels(21, 5).view(3, 7), None, -100), {}),
    "layer norm without weight": lambda: ("nn.layer_norm", (f(3, 5, 4), None, None, [4], EPS), {}),
    "layer norm backward without weight": lambda: ("nn.layer_norm_backward", _layer_backward(None, None), {}),
    "layer norm backward of x alone": lambda: (
        "aten.native_layer_norm_backward.default", _aten_layer_backward([True, False, False]), {}
    ),
    "embedding backward by frequency": lambda: (
        "aten.embedding_dense_backward.default", (f(3, 5, 4), ints(7, 3, 5), 7, -1, True), {}
    ),
    "grouped heads": lambda: ("nn.attention", _attention(6, 3, None), {}),
    "grouped heads backward": lambda: ("nn.attention_backward", _attention_backward(6, 3, None), {}),
    "uneven grouped heads": lambda: ("nn.attention", _attention(10, 5, None), {}),
    "one key head": lambda: ("nn.attention", _attention(5, 1, None), {}),
    "one key head backward": lambda: ("nn.attention_backward", _attention_backward(5, 1, None), {}),
    "mask of all": lambda: ("nn.attention", _attention(5, 5, f(3, 5, 5, 5)), {}),
    "mask by batch": lambda: ("nn.attention", _attention(5, 5, f(3, 1, 5, 5)), {}),
    "mask of positions": lambda: ("nn.attention_backward", _attention_backward(5, 5, f(5, 5)), {}),
    "bins of the elements": lambda: ("aten.histc.default", (f(3, 5),), {}),
    "counts": lambda: ("aten.scatter_add.default", (f(4), 0, ints(4, 7), f(7)), {}),
    "cpu attention": lambda: _cpu_attention(None, True),
    "cpu attention with a mask": lambda: _cpu_attention(f(3, 1, 6, 6), False),
    "cpu attention backward": lambda: _cpu_attention_backward(None, True),
    "cpu attention backward with a mask": lambda: _cpu_attention_backward(f(1, 1, 6, 6), False),
}  # fmt: skip


def _case(op: str, make: Callable[[], tuple[Any, ...]]) -> Callable[[], CallParts]:
    return lambda: (op, make(), {})


def _view(op: str, args: tuple[Any, ...]) -> Callable[[], CallParts]:
    return lambda: (op, args, {})


CASES: dict[str, Callable[[], CallParts]] = {
    **{op: _case(op, make) for op, make in _ATEN.items()},
    **{
        f"{op} {name}": _view(op, given)
        for op in ("aten.view.default", "aten.reshape.default")
        for name, given in _VIEWS.items()
    },
    **_MORE,
}
"""By name: a function that returns the op, its operands and its keyword operands."""
