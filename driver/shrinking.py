"""Ways to make a module smaller that leave it well formed, whatever becomes of its values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from ..ir.bindings import Operation, Type, Value, mlir
from ..ir.dialects import context
from ..ir.module import (
    Module,
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
from ..ir.operations import is_packing
from ..ir.types import from_mlir, is_tensor

Site = tuple[str, int]
"""A function, and the number of one of its operations."""


def count(module: Module) -> int:
    """How many operations it has, returns left out."""
    return sum(len(_inner(function)) for function in module.functions().values())


def sites(module: Module) -> list[Site]:
    """The operations whose results may come from outside instead: floating tensors and booleans."""
    return [
        (name, number)
        for name, function in module.functions().items()
        for number, op in enumerate(_inner(function))
        if not is_packing(op) and all(_may_be_given(r) for r in op.results if _is_used(r))
    ]


def keep_results(module: Module, kept: Collection[int]) -> None:
    """Let `main` give some of its results only."""
    main = module.functions()["main"]
    records = result_records(main)
    _return(main, [value for i, value in enumerate(terminator(main).operands) if i in kept])
    set_result_records(main, [record for i, record in enumerate(records) if i in kept])


def give_from_outside(module: Module, chosen: Iterable[Site]) -> None:
    """Replace operations by new arguments of their functions, which all callers are given, `main` by its caller."""
    functions = module.functions()
    ops = [(name, _inner(functions[name])[number]) for name, number in chosen]
    new: dict[str, list[Type]] = defaultdict(list)
    for name, op in ops:
        for result in op.results:
            if _is_used(result):
                result.replace_all_uses_with(_new_argument(functions[name], result.type))
                new[name].append(result.type)
        op.operation.erase()
    for name in _callees_first(module):
        for caller, call in _calls(module, name) if new[name] and name != "main" else ():
            given = [_new_argument(functions[caller], type_) for type_ in new[name]]
            new[caller] += new[name]
            _call_again(call, [*call.operands, *given], range(len(call.results)))
    for function in functions.values():
        refresh_type(function)
    _name_new_arguments(functions["main"])


def bypass(module: Module, site: Site) -> None:
    """Replace an operation by its first operand of the same type, where there is one."""
    op = _inner(module.functions()[site[0]])[site[1]]
    if len(op.results) == 1:
        same = next((operand for operand in op.operands if operand.type == op.results[0].type), None)
        if same is not None:
            op.results[0].replace_all_uses_with(same)


def trim(module: Module) -> None:
    """Drop what nothing uses: operations, results and arguments of functions, functions; again and again."""
    while _drop_operations(module) or _drop_functions(module) or _drop_results(module) or _drop_arguments(module):
        pass


def _drop_operations(module: Module) -> bool:
    dropped = False
    for function in module.functions().values():
        for op in reversed(_inner(function)):
            if not any(_is_used(result) for result in op.results):
                op.operation.erase()
                dropped = True
    return dropped


def _drop_functions(module: Module) -> bool:
    for name, function in module.functions().items():
        if name != "main" and not _calls(module, name):
            function.operation.erase()
            return True
    return False


def _drop_results(module: Module) -> bool:
    for name, function in module.functions().items():
        calls = _calls(module, name)
        if name == "main" or not calls:
            continue
        given = list(terminator(function).operands)
        kept = [i for i in range(len(given)) if any(_is_used(call.results[i]) for _, call in calls)]
        if len(kept) < len(given):
            _return(function, [given[i] for i in kept])
            for _, call in calls:
                _call_again(call, list(call.operands), kept)
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
        if name == "main":
            set_argument_records(function, [records[i] for i in kept])
        refresh_type(function)
        for _, call in _calls(module, name):
            _call_again(call, [call.operands[i] for i in kept], range(len(call.results)))
        return True
    return False


def _return(function: Operation, values: Sequence[Value]) -> None:
    old = terminator(function)
    with context(), old.location, mlir.InsertionPoint(old):
        mlir.Operation.create("func.return", operands=list(values))
    old.operation.erase()
    refresh_type(function)


def _call_again(call: Operation, operands: Sequence[Value], kept: Sequence[int]) -> None:
    """Replace a call by one with other operands, of whose results some are left."""
    with context(), mlir.InsertionPoint(call):
        made = build_call(callee(call) or "", operands, [call.results[i].type for i in kept], call.location)
    for i, result in zip(kept, made, strict=True):
        call.results[i].replace_all_uses_with(result)
    call.operation.erase()


def _calls(module: Module, name: str) -> list[tuple[str, Operation]]:
    """Every call of a function, with the name of its caller."""
    functions = module.functions().items()
    return [(caller, op) for caller, function in functions for op in operations(function) if callee(op) == name]


def _callees_first(module: Module) -> list[str]:
    found: list[str] = []

    def visit(name: str) -> None:
        for op in operations(module.functions()[name]):
            called = callee(op)
            if called is not None and called not in found:
                visit(called)
        if name not in found:
            found.append(name)

    for name in module.functions():
        visit(name)
    return found


def _new_argument(function: Operation, type_: Type) -> Value:
    with context():
        return entry(function).add_argument(type_, mlir.Location.unknown())


def _name_new_arguments(main: Operation) -> None:
    count_ = len(entry(main).arguments)
    known = argument_records(main) if "arg_attrs" in main.attributes else []
    known = known[: len(mlir.ArrayAttr(main.attributes["arg_attrs"]))] if known else []
    new = [{"kind": "input", "name": f"given.{i}", "index": i} for i in range(len(known), count_)]
    set_argument_records(main, [*known, *new])


def _inner(function: Operation) -> list[Operation]:
    return list(operations(function))[:-1]


def _is_used(value: Value) -> bool:
    return next(iter(value.uses), None) is not None


def _may_be_given(value: Value) -> bool:
    if not is_tensor(value.type):
        return False
    dtype = from_mlir(value.type).dtype
    return dtype.is_floating_point or str(dtype) == "torch.bool"
