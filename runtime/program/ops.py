"""The table of ops that a program may call. A name outside it is refused, so a program is data, never code."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from ..errors import ProgramError

NAMESPACES = frozenset({"aten", "prims", "transformers"})
"""The torch.ops namespaces whose ops a program may call."""

_REGISTERED_BY = {"transformers": "transformers.integrations.moe"}
"""By namespace of a library's ops: the module that registers them when it is imported."""

COLLECTIVES: dict[str, frozenset[str]] = {
    "comm.all_reduce_start": frozenset({"axes", "reduce"}),
    "comm.all_gather_start": frozenset({"axes", "dim"}),
    "comm.reduce_scatter_start": frozenset({"axes", "dim", "reduce"}),
    "comm.all_to_all_start": frozenset({"axes", "split_dim", "concat_dim"}),
}
"""Collectives and their keywords. Each returns a handle, from which `comm.wait` gets the tensor."""

MESSAGES: dict[str, frozenset[str]] = {
    "comm.send": frozenset({"axis", "peer"}),
    "comm.receive_start": frozenset({"axis", "peer", "size", "dtype"}),
}
"""Point-to-point messages and their keywords.

`peer` is the partner's coordinate on `axis`; its other coordinates are this rank's. Messages from one rank to another
are received in the order of their sends. A send never blocks; a receive returns a handle for `comm.wait`.
"""

RANK_OPS: dict[str, frozenset[str]] = {
    "rank.shard": frozenset({"axes", "dim", "chunk"}),
    "rank.offset": frozenset({"axes", "chunk"}),
    "rank.mask": frozenset({"axes", "dim", "chunk", "extent", "fill"}),
    "rank.random": frozenset({"size", "axes", "chunks", "below"}),
}
"""Ops that depend on the rank's coordinates, and their keywords.

`rank.random` returns the rank's part of random numbers (`philox.py`) of global shape `size`: `chunks[d]` elements of
dim d, which is sharded over the axes in `axes[d]` ("dp,tp", outermost first; "" for a dim that is not sharded).
"""

OWN_OPS = frozenset({"call", "comm.wait", *COLLECTIVES, *MESSAGES, *RANK_OPS})

_NAME = re.compile(r"([a-z_][a-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)", re.ASCII)

_QUICK: dict[str, Callable[..., Any]] = {
    "aten.add.Tensor": torch.add, "aten.sub.Tensor": torch.sub, "aten.mul.Tensor": torch.mul,
    "aten.div.Tensor": torch.div,
    "aten.mul.Scalar": torch.mul, "aten.div.Scalar": torch.div, "aten.mm.default": torch.mm,
    "aten.bmm.default": torch.bmm, "aten.addmm.default": torch.addmm, "aten.neg.default": torch.neg,
    "aten.exp.default": torch.exp, "aten.log.default": torch.log, "aten.rsqrt.default": torch.rsqrt,
    "aten.sqrt.default": torch.sqrt, "aten.sin.default": torch.sin, "aten.cos.default": torch.cos,
    "aten.tanh.default": torch.tanh, "aten.sigmoid.default": torch.sigmoid, "aten.relu.default": torch.relu,
    "aten.pow.Tensor_Scalar": torch.pow, "aten.reshape.default": torch.reshape, "aten.t.default": torch.t,
    "aten.transpose.int": torch.transpose, "aten.permute.default": torch.permute,
    "aten.unsqueeze.default": torch.unsqueeze, "aten.squeeze.dim": torch.squeeze, "aten.cat.default": torch.cat,
    "aten.where.self": torch.where, "aten.sum.dim_IntList": torch.sum, "aten.mean.dim": torch.mean,
    "aten.where.ScalarOther": torch.where, "aten.sum.default": torch.sum, "aten.amax.default": torch.amax,
    "aten.eq.Scalar": torch.eq, "aten.ne.Scalar": torch.ne, "aten.lt.Scalar": torch.lt, "aten.le.Scalar": torch.le,
    "aten.gt.Scalar": torch.gt, "aten.ge.Scalar": torch.ge, "aten.stack.default": torch.stack,
    "aten.constant_pad_nd.default": torch.constant_pad_nd, "aten.gather.default": torch.gather,
    "aten.scatter_add.default": torch.scatter_add, "aten.native_layer_norm.default": torch.native_layer_norm,
    "aten.expand.default": torch.Tensor.expand, "aten.unbind.int": torch.unbind,
    "aten.clone.default": torch.clone, "aten.embedding.default": torch.embedding,
}  # fmt: skip
"""Direct bindings that call the same overload as the name says, for about 1 us less than torch.ops (CPU)."""


@dataclass(frozen=True)
class Op:
    """A torch op by its name in a program."""

    name: str
    overload: Callable[..., Any]
    call: Callable[..., Any]
    """What the executor calls: the overload, or a faster binding of it."""
    gives_list: bool
    """Whether it returns a list or tuple, with one slot for each item; else it returns one value or none."""
    is_factory: bool
    """Whether it makes a tensor from no tensor, so that it needs the device as an argument."""
    is_mutable: bool
    """Whether it writes to one of its arguments."""


@cache
def torch_op(name: str) -> Op:
    """The op that `name` ("aten.mm.default") calls. Raises ProgramError E0305 for a name that is not in the table."""
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in NAMESPACES:
        raise _unknown(name)
    _register(match[1])
    overload = getattr(getattr(getattr(torch.ops, match[1]), match[2], None), match[3], None)
    if not isinstance(overload, torch._ops.OpOverload):
        raise _unknown(name)
    schema = overload._schema
    returns = schema.returns
    gives_list = len(returns) > 1 or (len(returns) == 1 and str(returns[0].type).startswith("List["))
    takes_tensor = any("Tensor" in str(argument.type) for argument in schema.arguments)
    takes_device = any(argument.name == "device" for argument in schema.arguments)
    quick: Callable[..., Any] = _QUICK.get(name, overload)
    return Op(name, overload, quick, gives_list, takes_device and not takes_tensor, schema.is_mutable)


def _register(namespace: str) -> None:
    """Import the module that registers a library's ops with torch, where the library is installed."""
    module = _REGISTERED_BY.get(namespace, "")
    if module and find_spec(module.partition(".")[0]) is not None:
        import_module(module)


def _unknown(name: str) -> ProgramError:
    return ProgramError(
        "E0305",
        f"the program calls '{name}', which is not in the table of ops",
        expected=f"an op of {', '.join(sorted(NAMESPACES))}, or one of {', '.join(sorted(OWN_OPS))}",
        help="for an op of a library, install the library; for an op of another torch version, install that version",
    )
