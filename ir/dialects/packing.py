"""Lists of tensors as tuples: keep the invariant that every tuple operand comes from a packing cast.

`read` finds the values of a list at the packing cast that made the tuple. Upstream's canonicalization folds a packing
of unpacked values, so that an operation takes another operation's tuple directly; `restore_packing` undoes this.
"""

from __future__ import annotations

from ..bindings import Operation, Type, Value, mlir
from ..operations import is_packing, pack, unpack


def restore_packing(root: Operation) -> None:
    """Insert an unpacking and a packing cast where an operation under `root` takes another operation's tuple."""
    users: list[Operation] = []

    def visit(op: Operation) -> object:
        if not is_packing(op) and any(_is_unpacked(v) for v in op.operands):
            users.append(op)
        return mlir.WalkResult.ADVANCE

    root.walk(visit)
    for op in users:
        for i, value in enumerate(op.operands):
            if _is_unpacked(value):
                values = _values(value)
                with mlir.InsertionPoint(op):
                    op.operands[i] = pack(values, op.location)


def is_tuple(type_: Type) -> bool:
    """Whether a type is a tuple, which stands for a list of tensors."""
    return isinstance(type_, mlir.TupleType)


def _is_unpacked(value: Value) -> bool:
    """Whether a value is a tuple that does not come from a packing cast."""
    maker = value.owner
    return is_tuple(value.type) and isinstance(maker, (mlir.Operation, mlir.OpView)) and not is_packing(maker)


def _values(value: Value) -> list[Value]:
    """The values of a tuple: of an existing unpacking cast, moved up to the tuple, or of a new one."""
    maker = value.owner
    for use in value.uses:
        if is_packing(use.owner):
            use.owner.move_after(maker)
            return list(use.owner.results)
    type_ = mlir.TupleType(value.type)
    with mlir.InsertionPoint.after(maker):
        return unpack(value, [type_.get_type(i) for i in range(type_.num_types)], maker.location)
