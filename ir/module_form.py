"""Check a hand-written module for the form that the verifier and passes assume.

A module consists of functions with one block each, with "main" or an entry function per stage among them. Its level and
mesh are readable. Tensors have static shapes, and known element types and placements. Entry functions take only
tensors.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..diagnostics import StrettoError
from .bindings import Operation, Type
from .module import Module, argument_records, entry, operations, result_records
from .operations import read
from .pipelined_module import entry_names, microbatch_of
from .types import from_mlir, is_tensor
from .verifier import Problem

_UNREADABLE = (TypeError, KeyError, ValueError, AttributeError)
"""The exceptions for an attribute or a type that Stretto does not write."""


def form_problems(module: Module) -> Iterator[Problem]:
    """Every violation of the form; later ones may follow from earlier ones."""
    yield from _module_problems(module)
    for function in module.functions().values():
        blocks = len(function.regions[0].blocks)
        if blocks != 1:
            yield Problem(f"a function must have one block, not {blocks}", function)
            return
        yield from _function_problems(function)
    for name in entry_names(module):
        function = module.functions().get(name)
        if function is None:
            yield Problem(f'the module has no function "{name}"', module.operation)
            return
        for argument in entry(function).arguments:
            if not is_tensor(argument.type):
                yield Problem(f'"{name}" may take only tensors, not {argument.type}', function)


def constant_problems(module: Module) -> Iterator[Problem]:
    """Every operation with a constant that Stretto does not write."""
    for function in module.functions().values():
        for op in operations(function):
            try:
                read(op), microbatch_of(op)
            except _UNREADABLE as error:
                yield Problem(f"its constants cannot be read: {error}", op)


def _module_problems(module: Module) -> Iterator[Problem]:
    for op in module.body.operations:
        if op.operation.name != "func.func":
            yield Problem("a module may hold only functions", op)
    try:
        level, mesh = module.level, module.mesh
    except _UNREADABLE as error:
        yield Problem(f"its level or its mesh cannot be read: {error}", module.operation)
        return
    if not all(isinstance(axis, str) and type(size) is int and size > 0 for axis, size in mesh):
        yield Problem(f"at level {level}, the mesh must be a list of axes and sizes, not {mesh}", module.operation)


def _function_problems(function: Operation) -> Iterator[Problem]:
    try:
        argument_records(function), result_records(function)
    except _UNREADABLE as error:
        yield Problem(f"the records of its arguments or results cannot be read: {error}", function)
    for argument in entry(function).arguments:
        yield from _type_problems(argument.type, function)
    for op in operations(function):
        for result in op.results:
            yield from _type_problems(result.type, op)


def _type_problems(type_: Type, op: Operation) -> Iterator[Problem]:
    if not is_tensor(type_):
        return
    try:
        shape = from_mlir(type_).shape
    except StrettoError as error:
        yield Problem(f"type {type_}: {error.message}", op)
    except _UNREADABLE:
        yield Problem(f"type {type_} has an unknown element type or placement", op)
    else:
        if any(extent < 0 for extent in shape):
            yield Problem(f"type {type_} has a dynamic dim", op)
