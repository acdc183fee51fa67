"""How many heads of keys a marked attention has: as few as the model means, or as many as ranks that share heads need.

Before (the model repeats two heads itself)     After, on a ring or with gathered keys
  %w = aten.reshape (aten.expand %k)              %o, %l = nn.attention %q, %k, %v
  %o, %l = nn.attention %q, %w, %x                ..
  %dq, %dw, %dx = nn.attention_backward ..        %dq, %dk, %dv = nn.attention_backward ..
  %dk = aten.sum (aten.reshape %dw)

So ranks exchange no copies. Where ranks share heads and heads of keys are fewer, these are copied in the same way, and
the gradients of copies are summed.
"""

from __future__ import annotations

from math import lcm

from ...ir.attention_methods import ATTENTION, methods_of, set_methods
from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.operations import Call, build, copy_attributes, read
from ...ir.types import TensorType, from_mlir, to_mlir
from ..rewriting import Emitter, Site, producer, users

_GROUPS = 2
"""The dim that the copies of a head get."""
_RESHAPES = ("aten.reshape.default", "aten.view.default", "aten._unsafe_view.default")
_SAME = (*_RESHAPES, "aten.clone.default")
_SUM = "aten.sum.dim_IntList"


def operands_of(call: Call) -> list[Value]:
    """Queries, keys and values of an attention or its backward: (batch, heads, tokens, head size)."""
    first = ATTENTION.index(call.name)
    return list(call.args[first : first + 3])


def mask_of(call: Call) -> Value | None:
    """The mask of an attention or its backward."""
    mask: Value | None = call.args[(3, 6)[ATTENTION.index(call.name)]]
    return mask


def heads_of(value: Value) -> int:
    """The heads of queries, keys or values."""
    return from_mlir(value.type).shape[1]


def share_heads(site: Site, ranks: int) -> None:
    """Give an attention or its backward the heads of keys that it needs, where so many ranks share heads."""
    call, [_, key, value] = site.call, operands_of(site.call)
    sources = [_unrepeated(key), _unrepeated(value)]
    sums = (
        [_sums_of_copies(site.op.results[index], sources[index - 1]) for index in (1, 2)] if _is_backward(call) else []
    )
    if heads_of(sources[0]) != heads_of(sources[1]) or None in sums:
        sources, sums = [key, value], [[], []]
    heads = heads_of(sources[0])
    copies = lcm(heads, ranks) // heads if heads > 1 else 1
    if heads * copies == heads_of(key):
        return
    methods = methods_of(site.op)
    types = [result.type for result in site.op.results]
    with context(), mlir.InsertionPoint(site.op):
        wide = [_copied(site.emitter, source, copies) for source in sources]
        if _is_backward(call):
            types[1:] = [to_mlir(TensorType(t.dtype, t.shape)) for t in (from_mlir(each.type) for each in wide)]
        first, args = ATTENTION.index(call.name) + 1, list(call.args)
        args[first : first + 2] = wide
        results: list[Value] = build(Call(call.name, tuple(args)), types, site.op.location)
        set_methods(results[0].owner, methods)
        copy_attributes(site.op, results[0].owner)
        if _is_backward(call):
            results[1:] = [_summed(site.emitter, result, copies) for result in results[1:]]
    for index, of_result in enumerate(sums, 1):
        for total in of_result or []:
            _replace_sum(total, results[index])
        for apart in users(site.op.results[index]) if of_result else []:
            apart.operation.erase()
    site.replace(*(None if index and sums and sums[index - 1] else new for index, new in enumerate(results)))


def _is_backward(call: Call) -> bool:
    return call.name != ATTENTION[0]


def _unrepeated(value: Value) -> Value:
    """The keys or values that the model repeats for the queries that share them; the value itself, if it does not."""
    call = producer(value)
    while call is not None and call.name in _SAME:
        call = producer(call.args[0])
    source = producer(call.args[0]) if call is not None and call.name == "aten.expand.default" else None
    if call is None or source is None or source.name != "aten.unsqueeze.default":
        return value
    found: Value = source.args[0]
    narrow, wide = from_mlir(found.type).shape, from_mlir(value.type).shape
    if len(narrow) != 4 or narrow != (wide[0], narrow[1], *wide[2:]) or wide[1] % narrow[1]:
        return value
    apart, copied = from_mlir(call.args[0].type).shape, (*narrow[:2], wide[1] // narrow[1], *narrow[2:])
    return found if apart == (*narrow[:2], 1, *narrow[2:]) and tuple(call.args[1]) == copied else value


def _sums_of_copies(gradient: Value, source: Value) -> list[Operation] | None:
    """The sums over the copies of each head of `source`, if nothing else reads the gradient; [] if it has no copies."""
    wide, narrow = from_mlir(gradient.type).shape, from_mlir(source.type).shape
    if wide == narrow:
        return []
    sums: list[Operation] = []
    for apart in users(gradient):
        call = read(apart)
        copied = (*narrow[:2], wide[1] // narrow[1], *narrow[2:])
        if call is None or call.name not in _RESHAPES or from_mlir(apart.results[0].type).shape != copied:
            return None
        for total in users(apart.results[0]):
            summed = read(total)
            if summed is None or summed.name != _SUM or list(summed.args[1]) != [_GROUPS]:
                return None
            sums.append(total)
    return sums or None


def _replace_sum(total: Operation, narrow: Value) -> None:
    """Replace a sum over copies by the gradient of the one head, with the dim of the copies if the sum keeps it."""
    type_ = from_mlir(total.results[0].type)
    with context(), mlir.InsertionPoint(total):
        if len(type_.shape) == 5:
            narrow = Emitter(total.location).op("aten.unsqueeze.default", narrow, _GROUPS, type=type_)
    total.results[0].replace_all_uses_with(narrow)
    total.operation.erase()


def _copied(emitter: Emitter, value: Value, copies: int) -> Value:
    """(batch, heads, tokens, size) with each head `copies` times, one after the other."""
    if copies == 1:
        return value
    type_ = from_mlir(value.type)
    batch, heads, *rest = type_.shape
    apart, wide = (batch, heads, 1, *rest), (batch, heads, copies, *rest)
    value = emitter.op("aten.unsqueeze.default", value, _GROUPS, type=TensorType(type_.dtype, apart))
    value = emitter.op("aten.expand.default", value, list(wide), type=TensorType(type_.dtype, wide))
    merged = (batch, heads * copies, *rest)
    return emitter.op("aten.reshape.default", value, list(merged), type=TensorType(type_.dtype, merged))


def _summed(emitter: Emitter, value: Value, copies: int) -> Value:
    """The sum over the copies of each head."""
    if copies == 1:
        return value
    type_ = from_mlir(value.type)
    batch, heads, *rest = type_.shape
    apart = (batch, heads // copies, copies, *rest)
    value = emitter.op("aten.reshape.default", value, list(apart), type=TensorType(type_.dtype, apart))
    return emitter.op(_SUM, value, [_GROUPS], type=TensorType(type_.dtype, (batch, heads // copies, *rest)))
