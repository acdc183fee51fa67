"""The form that every module has and that passes take for granted; a file that someone wrote may lack it.

A module holds functions, "main" among them (or an entry for each stage), each with one block; its level and its mesh
can be read; tensors have fixed dims, and an element type and a placement that Stretto knows; an entry takes nothing
but tensors.
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
"""What reading an attribute or a type raises that is none of Stretto's."""


def malformed(module: Module) -> Iterator[Problem]:
    """Every way in which a module lacks its form; those that come later may suffer from those before."""
    yield from _module_problems(module)
    for function in module.functions().values():
        blocks = len(function.regions[0].blocks)
        if blocks != 1:
            yield Problem(f"a function has one block, and this one has {blocks}", function)
            return
        yield from _function_problems(function)
    for name in entry_names(module):
        function = module.functions().get(name)
        if function is None:
            yield Problem(f'the module has no function "{name}"', module.operation)
            return
        for argument in entry(function).arguments:
            if not is_tensor(argument.type):
                yield Problem(f'"{name}" takes tensors, and {argument.type} is none', function)


def unreadable(module: Module) -> Iterator[Problem]:
    """Operations whose constants are none that Stretto writes."""
    for function in module.functions().values():
        for op in operations(function):
            try:
                read(op), microbatch_of(op)
            except _UNREADABLE as error:
                yield Problem(f"its constants cannot be read: {error}", op)


def _module_problems(module: Module) -> Iterator[Problem]:
    for op in module.body.operations:
        if op.operation.name != "func.func":
            yield Problem("only functions stand in a module", op)
    try:
        level, mesh = module.level, module.mesh
    except _UNREADABLE as error:
        yield Problem(f"its level or its mesh cannot be read: {error}", module.operation)
        return
    if not all(isinstance(axis, str) and type(size) is int and size > 0 for axis, size in mesh):
        yield Problem(f"at level {level}, its mesh is no list of axes and sizes: {mesh}", module.operation)


def _function_problems(function: Operation) -> Iterator[Problem]:
    try:
        argument_records(function), result_records(function)
    except _UNREADABLE as error:
        yield Problem(f"what is known of its arguments or results cannot be read: {error}", function)
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
        yield Problem(f"type {type_} has an element type or a placement that Stretto does not know", op)
    else:
        if any(extent < 0 for extent in shape):
            yield Problem(f"type {type_} has a dim without a fixed extent", op)
