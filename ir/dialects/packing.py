"""Lists of tensors as tuples: the rule that an operation takes none but what a packing cast made.

`read` finds the values of a list at the packing cast that made the tuple. Upstream's canonicalization removes a packing
of what was just unpacked, so that an operation takes the tuple that another made; `restore_packing` puts it back.
"""

from __future__ import annotations

from ..bindings import Operation, Type, Value, mlir
from ..operations import is_packing, pack, unpack


def restore_packing(root: Operation) -> None:
    """Give every operation under `root` that takes a tuple of another operation the tuple's values, packed anew."""
    found: list[Operation] = []

    def visit(op: Operation) -> object:
        if not is_packing(op) and any(_is_unpacked(v) for v in op.operands):
            found.append(op)
        return mlir.WalkResult.ADVANCE

    root.walk(visit)
    for op in found:
        for i, value in enumerate(op.operands):
            if _is_unpacked(value):
                values = _values(value)
                with mlir.InsertionPoint(op):
                    op.operands[i] = pack(values, op.location)


def is_tuple(type_: Type) -> bool:
    """Whether values of this type stand for lists of tensors."""
    return isinstance(type_, mlir.TupleType)


def _is_unpacked(value: Value) -> bool:
    """Whether a value is a tuple that no packing made."""
    maker = value.owner
    return is_tuple(value.type) and isinstance(maker, (mlir.Operation, mlir.OpView)) and not is_packing(maker)


def _values(value: Value) -> list[Value]:
    """The values of a tuple: of the cast that unpacks it already, moved to where it is made, or of a new one."""
    maker = value.owner
    for use in value.uses:
        if is_packing(use.owner):
            use.owner.move_after(maker)
            return list(use.owner.results)
    type_ = mlir.TupleType(value.type)
    with mlir.InsertionPoint.after(maker):
        return unpack(value, [type_.get_type(i) for i in range(type_.num_types)], maker.location)
