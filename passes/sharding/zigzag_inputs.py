"""Cut the tokens of inputs zigzag: with 2n parts rank r has r and 2n - 1 - r, so that ranks share causal work evenly.

Inputs stay what the caller passes, cut contiguously, and are brought to the zigzag once, at the start; for tokens and
labels that is an all-gather of numbers. All that follows them is cut so too (`rules/blocks.py`): a dim's two halves are
blocks, of which the second has its chunks in reverse.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ...diagnostics import StrettoError
from ...dsl.attention import Method
from ...ir.attention_methods import ZIGZAGS
from ...ir.attributes import to_attribute
from ...ir.bindings import Value, mlir
from ...ir.collectives import RESHARD
from ...ir.dialects.context import context
from ...ir.locations import Origin, to_location
from ...ir.module import Module, argument_records, entry, operations, terminator
from ...ir.operations import Call, build
from ...ir.placement import Placement, axes_size
from ...ir.types import from_mlir, to_mlir
from ..layers.argument_types import pass_types_on
from ..rewriting import users
from .rules.ir_calls import BLOCKS, blocks_in


def cut_zigzag(module: Module, methods: Mapping[str, str]) -> None:
    """Reshard inputs that zigzag axes cut, and note the blocks on the module. Raises E0406 for tokens without halves.

    `methods` has the method of attention over each axis. An axis over which heads are exchanged may cut the parts of a
    zigzag rank further.
    """
    axes = [axis for axis, method in methods.items() if method in ZIGZAGS]
    inner = [axis for axis, method in methods.items() if method == Method.ALL_TO_ALL]
    main, known = module.functions()["main"], [*blocks_in(module)]
    for argument, record in zip(entry(main).arguments, argument_records(main), strict=True):
        if record.get("kind") != "input":
            continue
        type_ = from_mlir(argument.type)
        placement = type_.placement_on(module.mesh)
        for dim, nest in enumerate(placement.dims):
            if set(nest).isdisjoint(axes):
                continue
            ranks, half = axes_size(module.mesh, nest), type_.shape[dim] // 2
            _check(record["name"], type_.shape[dim], nest, ranks, _zigzag_of(nest, axes, inner))
            placement = placement.with_blocks(dim, (half, -half))
            known += [(half, -half)] if (half, -half) not in known else []
        if placement.blocks:
            _reshard(module, argument, placement)
    module.operation.attributes[BLOCKS] = to_attribute([list(blocks) for blocks in known])
    pass_types_on(module)


def _zigzag_of(nest: tuple[str, ...], axes: Collection[str], inner: Collection[str]) -> list[str]:
    """The axes of a dim that may cut it zigzag: those of the ring, and inside of them those that exchange heads."""
    fit = [axis for axis in nest if axis in axes]
    rest = nest[len(fit) :]
    return [*fit, *rest] if set(nest[: len(fit)]) == set(fit) and set(rest) <= set(inner) else fit


def _check(name: str, tokens: int, nest: tuple[str, ...], ranks: int, axes: Collection[str]) -> None:
    others = [axis for axis in nest if axis not in axes]
    if others:
        raise StrettoError(
            "E0406",
            f'tokens of input "{name}" are cut over {", ".join(nest)}, of which {", ".join(others)} is not zigzag',
            expected="expected the same layout over all axes that cut the tokens",
            help=f"name {', '.join(nest)} in one attention statement, or write layout contiguous",
        )
    if tokens % (2 * ranks):
        raise StrettoError(
            "E0406",
            f'input "{name}" has {tokens} tokens, which {ranks} ranks over {", ".join(nest)} cannot share zigzag',
            expected=f"expected a multiple of {2 * ranks}: two parts for each rank",
            help="pad the sequence, make the ring smaller, or write layout contiguous",
        )


def _reshard(module: Module, argument: Value, placement: Placement) -> None:
    """Replace the argument by itself in another placement, in all of main but its results."""
    main = module.functions()["main"]
    type_ = to_mlir(from_mlir(argument.type).placed(placement, module.mesh))
    readers = [op for op in users(argument) if op != terminator(main)]
    with context(), mlir.InsertionPoint(next(iter(operations(main)))):
        [moved] = build(Call(RESHARD, (argument,)), [type_], to_location(Origin()))
    for op in readers:
        op.operation.replace_uses_of_with(argument, moved)
