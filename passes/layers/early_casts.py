"""Cast arguments of folded layers before the calls, in place of inside.

Before                                           After
  func private @layers_forward(%x, %w: t<8xf32>)   func private @layers_forward(%x, %w: t<8xbf16>)
    %c = aten._to_copy %w {dtype = bf16}             %y = aten.mm %x, %w
    %y = aten.mm %x, %c                              return %y
    return %y, %c                                  }
  }                                                %c = aten._to_copy %a
  %0:2 = call @layers_forward(%x, %a)              %0 = call @layers_forward(%x, %c)
  .. call @layers_backward(%dy, %0#1)              .. call @layers_backward(%dy, %c)

A cast that a layer returned is no result any more: who used it takes main's.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from ...ir.bindings import Operation, Value, mlir
from ...ir.dialects.context import context
from ...ir.locations import from_location, to_location
from ...ir.module import Module, build_call, callee, entry, finish_function, operations, terminator
from ...ir.operations import Call, build, read
from ...ir.types import from_mlir
from ..rewriting import users
from .late_casts import CAST
from .unfold_layers import numbered


def cast_before_calls(module: Module, values: Container[Value]) -> None:
    """Let main cast those of its `values` that a function takes, in each call, only to cast them to one dtype."""
    functions = module.functions()
    main = functions["main"]
    calls: dict[str, list[Operation]] = {}
    for op in operations(main):
        if (name := callee(op)) is not None:
            calls.setdefault(name, []).append(op)
    made: dict[tuple[Value, str], Value] = {}
    for name, sites in calls.items():
        casts = {i: cast for i in _given(sites, values) if (cast := _only_cast(functions[name], i)) is not None}
        if casts:
            at = {index: from_location(cast.location) for index, cast in casts.items()}
            kept, left_out = _take_cast(functions[name], casts)
            types = [value.type for value in terminator(functions[name]).operands]
            for site in sites:
                layer = from_location(site.location)
                operands = list(site.operands)
                for index, type_ in ((index, entry(functions[name]).arguments[index].type) for index in at):
                    key = (operands[index], str(type_))
                    if key not in made:
                        call = Call(CAST, (operands[index],), {"dtype": from_mlir(type_).dtype})
                        with context(), mlir.InsertionPoint(site):
                            [made[key]] = build(call, [type_], to_location(numbered(at[index], layer)))
                    operands[index] = made[key]
                _call_again(site, operands, types, kept, left_out)


def _given(sites: Sequence[Operation], values: Container[Value]) -> list[int]:
    """The operands that are one of the values in every call."""
    return [i for i in range(len(sites[0].operands)) if all(site.operands[i] in values for site in sites)]


def _only_cast(function: Operation, index: int) -> Operation | None:
    """The first of the casts of an argument, which is used by nothing else and cast to one dtype; None if it is not."""
    argument = entry(function).arguments[index]
    casts = users(argument)
    calls = [read(op) if op.operation.name != "func.return" else None for op in casts]
    if not casts or any(call is None or call.name != CAST for call in calls):
        return None
    return casts[0] if len({op.results[0].type for op in casts}) == 1 else None


def _take_cast(function: Operation, casts: Mapping[int, Operation]) -> tuple[list[int], dict[int, int]]:
    """Let a function take what it casts to; the results that it keeps, and of the others the argument that each is."""
    arguments = entry(function).arguments
    taken = {arguments[index]: index for index in casts}
    for index, first in casts.items():
        argument, type_ = arguments[index], first.results[0].type
        for cast in users(argument):
            cast.results[0].replace_all_uses_with(argument)
            cast.operation.erase()
        argument.set_type(type_)
    end = terminator(function)
    results = list(end.operands)
    left_out = {number: taken[value] for number, value in enumerate(results) if value in taken}
    kept = [number for number in range(len(results)) if number not in left_out]
    end.operation.erase()
    finish_function(function, [results[number] for number in kept])
    return kept, left_out


def _call_again(
    site: Operation,
    operands: Sequence[Value],
    types: Sequence[mlir.Type],
    kept: Sequence[int],
    left_out: Mapping[int, int],
) -> None:
    """Replace a call by one with other operands and fewer results."""
    with context(), mlir.InsertionPoint(site):
        results = build_call(str(callee(site)), operands, types, site.location)
    for number, value in zip(kept, results, strict=True):
        site.results[number].replace_all_uses_with(value)
    for number, index in left_out.items():
        site.results[number].replace_all_uses_with(operands[index])
    site.operation.erase()
