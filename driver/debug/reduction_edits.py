"""Edits that make a module smaller and keep it well formed; its values may change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from ...ir.attributes import from_attribute
from ...ir.bindings import Operation, Type, Value, mlir
from ...ir.collectives import TRANSFERS
from ...ir.dialects.context import context
from ...ir.module import (
    Module,
    Record,
    argument_records,
    build_call,
    callee,
    entry,
    operations,
    refresh_type,
    result_records,
    set_argument_records,
    set_result_records,
    terminator,
)
from ...ir.operations import is_packing
from ...ir.pipelined_module import entries, entry_names, pipeline_axis
from ...ir.types import from_mlir, is_tensor

OperationIndex = tuple[str, int]
"""A function's name, and the index of one of its operations."""


def operation_count(module: Module) -> int:
    """The number of operations, without returns."""
    return sum(len(_body(function)) for function in module.functions().values())


def replaceable_operations(module: Module) -> list[OperationIndex]:
    """The operations that an argument can replace: their used results are floating or boolean tensors."""
    return [
        (name, number)
        for name, function in module.functions().items()
        for number, op in enumerate(_body(function))
        if not is_packing(op) and all(_can_be_argument(r) for r in op.results if _is_used(r))
    ]


def keep_results(module: Module, kept: Collection[int]) -> None:
    """Drop all results of the program but `kept`."""
    for function in entries(module):
        records = result_records(function)
        mine = [i for i, record in enumerate(records) if record.get("order", i) in kept]
        _return(function, [value for i, value in enumerate(terminator(function).operands) if i in mine])
        set_result_records(function, [records[i] for i in mine])
    _close_gaps(module)


def result_count(module: Module) -> int:
    """The number of results of the program."""
    records = [enumerate(result_records(function)) for function in entries(module)]
    return len({record.get("order", i) for numbered in records for i, record in numbered})


def argument_count(module: Module) -> int:
    """The number of arguments of the program; an argument of several entries counts once for each."""
    return sum(len(entry(function).arguments) for function in entries(module))


def replace_by_arguments(module: Module, chosen: Iterable[OperationIndex]) -> None:
    """Replace operations by new arguments of their functions, which callers pass on from new program arguments."""
    functions = module.functions()
    ops = [(name, _body(functions[name])[number]) for name, number in chosen]
    new: dict[str, list[Type]] = defaultdict(list)
    for name, op in ops:
        for result in op.results:
            if _is_used(result):
                result.replace_all_uses_with(_new_argument(functions[name], result.type))
                new[name].append(result.type)
        op.operation.erase()
    for name in _callees_first(module):
        for caller, call in _calls(module, name) if new[name] else ():
            arguments = [_new_argument(functions[caller], type_) for type_ in new[name]]
            new[caller] += new[name]
            _replace_call(call, [*call.operands, *arguments], range(len(call.results)))
    for function in functions.values():
        refresh_type(function)
    _name_new_arguments(module)


def bypass(module: Module, index: OperationIndex) -> None:
    """Replace an operation by its first operand of the same type, if it has one."""
    op = _body(module.functions()[index[0]])[index[1]]
    if len(op.results) == 1:
        same = next((operand for operand in op.operands if operand.type == op.results[0].type), None)
        if same is not None:
            op.results[0].replace_all_uses_with(same)


def remove_unused(module: Module) -> None:
    """Drop unused operations, function results, function arguments and functions until none is left."""
    drops = (_drop_operations, _drop_transfers, _drop_functions, _drop_results, _drop_arguments)
    while any(drop(module) for drop in drops):
        pass
    _close_gaps(module)


def _drop_operations(module: Module) -> bool:
    dropped = False
    for function in module.functions().values():
        for op in reversed(_body(function)):
            if op.operation.name not in TRANSFERS and not any(_is_used(result) for result in op.results):
                op.operation.erase()
                dropped = True
    return dropped


def _drop_transfers(module: Module) -> bool:
    """Drop unused receives, with their sends."""
    sent: dict[tuple[int, int], list[Operation]] = defaultdict(list)
    received: dict[tuple[int, int], list[Operation]] = defaultdict(list)
    for stage, function in enumerate(entries(module)):
        for op in operations(function):
            if op.operation.name in TRANSFERS:
                peer = int(from_attribute(op.attributes["peer"]))
                if op.operation.name == "comm.send":
                    sent[stage, peer].append(op)
                else:
                    received[peer, stage].append(op)
    pairs = [(a, b) for key, ops in received.items() for a, b in zip(sent[key], ops, strict=False)]
    unused = [(a, b) for a, b in pairs if not _is_used(b.results[0])]
    for pair in unused:
        for op in pair:
            op.operation.erase()
    return bool(unused)


def _drop_functions(module: Module) -> bool:
    for name, function in module.functions().items():
        if name not in entry_names(module) and not _calls(module, name):
            function.operation.erase()
            return True
    return False


def _drop_results(module: Module) -> bool:
    for name, function in module.functions().items():
        calls = _calls(module, name)
        if name in entry_names(module) or not calls:
            continue
        results = list(terminator(function).operands)
        kept = [i for i in range(len(results)) if any(_is_used(call.results[i]) for _, call in calls)]
        if len(kept) < len(results):
            _return(function, [results[i] for i in kept])
            for _, call in calls:
                _replace_call(call, list(call.operands), kept)
            return True
    return False


def _drop_arguments(module: Module) -> bool:
    for name, function in module.functions().items():
        arguments = list(entry(function).arguments)
        kept = [i for i, argument in enumerate(arguments) if _is_used(argument)]
        if len(kept) == len(arguments):
            continue
        records = argument_records(function)
        for i in reversed(range(len(arguments))):
            if i not in kept:
                entry(function).erase_argument(i)
        if name in entry_names(module):
            set_argument_records(function, [records[i] for i in kept])
        refresh_type(function)
        for _, call in _calls(module, name):
            _replace_call(call, [call.operands[i] for i in kept], range(len(call.results)))
        return True
    return False


def _return(function: Operation, values: Sequence[Value]) -> None:
    old = terminator(function)
    with context(), old.location, mlir.InsertionPoint(old):
        mlir.Operation.create("func.return", operands=list(values))
    old.operation.erase()
    refresh_type(function)


def _replace_call(call: Operation, operands: Sequence[Value], kept: Sequence[int]) -> None:
    """Replace a call by one with other operands that keeps only some of the results."""
    with context(), mlir.InsertionPoint(call):
        results = build_call(callee(call) or "", operands, [call.results[i].type for i in kept], call.location)
        for attribute in call.attributes if results else ():
            results[0].owner.attributes[attribute] = call.attributes[attribute]
    for i, result in zip(kept, results, strict=True):
        call.results[i].replace_all_uses_with(result)
    call.operation.erase()


def _calls(module: Module, name: str) -> list[tuple[str, Operation]]:
    """Every call of a function, with the name of its caller."""
    functions = module.functions().items()
    return [(caller, op) for caller, function in functions for op in operations(function) if callee(op) == name]


def _callees_first(module: Module) -> list[str]:
    names: list[str] = []

    def visit(name: str) -> None:
        for op in operations(module.functions()[name]):
            called = callee(op)
            if called is not None and called not in names:
                visit(called)
        if name not in names:
            names.append(name)

    for name in module.functions():
        visit(name)
    return names


def _new_argument(function: Operation, type_: Type) -> Value:
    with context():
        return entry(function).add_argument(type_, mlir.Location.unknown())


def _name_new_arguments(module: Module) -> None:
    """Give a record to each argument without one, with a number that is unique in the program."""
    is_ordered = pipeline_axis(module) is not None
    known = [_known_records(function) for function in entries(module)]
    used = ({i, *_numbers(record)} for records in known for i, record in enumerate(records))
    number = 1 + max(set().union(*used), default=-1)
    for function, records in zip(entries(module), known, strict=True):
        new: list[Record] = []
        for _ in range(len(records), len(entry(function).arguments)):
            record: Record = {"kind": "input", "name": f"given.{number}", "index": number}
            new.append(record | {"order": number} if is_ordered else record)
            number += 1
        set_argument_records(function, [*records, *new])


def _numbers(record: Record) -> set[int]:
    """The numbers in an argument's record."""
    return {record[key] for key in ("order", "index") if isinstance(record.get(key), int)}


def _known_records(function: Operation) -> list[Record]:
    if "arg_attrs" not in function.attributes:
        return []
    return argument_records(function)[: len(mlir.ArrayAttr(function.attributes["arg_attrs"]))]


def _close_gaps(module: Module) -> None:
    """Renumber the arguments and results of a pipelined module's entries without gaps."""
    if pipeline_axis(module) is None:
        return
    for read, write in ((argument_records, set_argument_records), (result_records, set_result_records)):
        orders = sorted({record["order"] for function in entries(module) for record in read(function)})
        for function in entries(module):
            write(function, [record | {"order": orders.index(record["order"])} for record in read(function)])


def _body(function: Operation) -> list[Operation]:
    return list(operations(function))[:-1]


def _is_used(value: Value) -> bool:
    return next(iter(value.uses), None) is not None


def _can_be_argument(value: Value) -> bool:
    if not is_tensor(value.type):
        return False
    dtype = from_mlir(value.type).dtype
    return dtype.is_floating_point or str(dtype) == "torch.bool"
