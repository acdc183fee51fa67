"""The ops that a program may call: Stretto's own, listed here, and torch's by the table in `stretto/ops`.

A name that is in neither is refused at load (E0305), so that a program is data, never code. An op that the table marks
`reference` is refused outside of the reference by `validate_functions.py`, a call that would draw by
`validate_calls.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch

from ...ops.table import Layout, find_op, in_layout
from ..errors import ProgramError

COLLECTIVES: dict[str, frozenset[str]] = {
    "comm.all_reduce_start": frozenset({"axes", "reduce"}),
    "comm.all_gather_start": frozenset({"axes", "dim"}),
    "comm.reduce_scatter_start": frozenset({"axes", "dim", "reduce"}),
    "comm.all_to_all_start": frozenset({"axes", "split_dim", "concat_dim"}),
    "comm.permute_start": frozenset({"axes", "shift"}),
    "comm.all_to_all_rows_start": frozenset({"axes", "bound", "send_counts", "receive_counts"}),
    "comm.all_reduce_coalesced_start": frozenset({"axes", "reduce"}),
    "comm.all_gather_coalesced_start": frozenset({"axes", "dims"}),
    "comm.reduce_scatter_coalesced_start": frozenset({"axes", "dims", "reduce"}),
}
"""Collectives and their keywords. Each returns a handle, from which `comm.wait` gets the tensor."""

COUNTS = ("send_counts", "receive_counts")
"""Keywords whose values are slots: by member of the group, the rows that this rank sends it and gets from it."""

COALESCED: dict[str, str] = {
    "comm.all_reduce_coalesced_start": "comm.all_reduce_start",
    "comm.all_gather_coalesced_start": "comm.all_gather_start",
    "comm.reduce_scatter_coalesced_start": "comm.reduce_scatter_start",
}
"""The collectives of a bucket: a list of tensors of one dtype, with a handle for each; what each does for one tensor.

`dims` has a dim for each tensor.
"""

MESSAGES: dict[str, frozenset[str]] = {
    "comm.send": frozenset({"axis", "peer"}),
    "comm.receive_start": frozenset({"axis", "peer", "size", "dtype"}),
}
"""Point-to-point messages and their keywords.

`peer` is the partner's coordinate on `axis`; its other coordinates are this rank's. Messages from one rank to another
are received in the order of their sends. A send never blocks; a receive returns a handle for `comm.wait`.
"""

MESSAGE_NAMES: dict[str, frozenset[str]] = {
    "comm.send": frozenset({"carries", "made_by"}),
    "comm.receive_start": frozenset({"carries"}),
}
"""Keywords of messages for the prover, which change nothing in what runs; programs from before format 2 have none.

`carries` names the value of the module that is sent; both ends say the same. `made_by` is the source of the payload.
"""


def source_of_several(sources: Sequence[str]) -> str:
    """The source of what is made of values with these sources: of one its own, of several the hash of all in order.

    >>> source_of_several(["input x"])
    'input x'
    """
    if not sources:
        return "constant"
    if len(sources) == 1:
        return sources[0]
    return f"of {blake2b(', '.join(sources).encode(), digest_size=8).hexdigest()}"


def source_of_call(callee: str, index: int, microbatch: int | Sequence[int] | None) -> str:
    """The source of a call's result, for one microbatch, for a pair of them, or for none.

    >>> source_of_call("forward_0", 1, [0, 2])
    'forward_0[1]@0+2'
    """
    if microbatch is None:
        return f"{callee}[{index}]"
    numbers = [microbatch] if isinstance(microbatch, int) else microbatch
    return f"{callee}[{index}]@{'+'.join(map(str, numbers))}"


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

_OPS: dict[str, Op] = {}
"""The ops that were looked up, by name. A name that was refused is looked up again: the caller may allow it later."""

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
    overload: torch._ops.OpOverload
    call: Callable[..., Any]
    """What the executor calls: the overload or a faster binding of it, on operands in the layout that it needs."""
    gives_list: bool
    """Whether it returns a list or tuple, with one slot for each item; else it returns one value or none."""
    is_factory: bool
    """Whether it makes a tensor from no tensor, so that it needs the device as an argument."""
    only_in_references: bool
    """Whether it writes to one of its arguments, so that it may stand only in the reference."""
    layout: Layout


def torch_op(name: str, place: str = "") -> Op:
    """The op that `name` ("aten.mm.default") calls; `place` is where it stands in the program's files.

    Raises ProgramError E0305 for a name that is not in the table, or that this process has not registered.
    """
    if name not in _OPS:
        _OPS[name] = _found(name, f"{place}: " if place else "")
    return _OPS[name]


def _found(name: str, place: str) -> Op:
    entry = find_op(name)
    if entry is None:
        raise _unknown(name, place)
    namespace, base, overload_name = name.split(".")
    overload = getattr(getattr(getattr(torch.ops, namespace), base, None), overload_name, None)
    if not isinstance(overload, torch._ops.OpOverload):
        raise _unregistered(name, place)
    schema = overload._schema
    returns = schema.returns
    gives_list = len(returns) > 1 or (len(returns) == 1 and str(returns[0].type).startswith("List["))
    takes_tensor = any("Tensor" in str(argument.type) for argument in schema.arguments)
    takes_device = any(argument.name == "device" for argument in schema.arguments)
    call = _on_operands_in(entry.layout, _QUICK.get(name, overload))
    is_factory = takes_device and not takes_tensor
    return Op(name, overload, call, gives_list, is_factory, entry.only_in_references, entry.layout)


def _on_operands_in(layout: Layout, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` itself where any layout will do, so that only the ops that need one pay for it."""
    if layout is Layout.ANY:
        return function

    def on_operands_in_layout(*args: object, **kwargs: object) -> Any:
        keywords = {key: in_layout(value, layout) for key, value in kwargs.items()}
        return function(*[in_layout(value, layout) for value in args], **keywords)

    return on_operands_in_layout


def _unknown(name: str, place: str) -> ProgramError:
    return ProgramError(
        "E0305",
        f"{place}the program calls '{name}', which is not in the table of ops",
        expected=f"an op of stretto/ops/op_table.txt, or one of {', '.join(sorted(OWN_OPS))}",
        help='for a custom op of your own, call stretto.allow_ops("NAMESPACE::NAME") before the program is loaded',
    )


def _unregistered(name: str, place: str) -> ProgramError:
    return ProgramError(
        "E0305",
        f"{place}the program calls '{name}', which is not registered with torch {torch.__version__} in this process",
        help="install the torch version that the program's manifest names",
    )
