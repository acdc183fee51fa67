"""The only module that imports torch-mlir's bindings; a missing or old wheel raises E0501 at import."""

from __future__ import annotations

from typing import Any

from ..diagnostics import StrettoError

_INSTALL = 'pip install "stretto[compiler]"'

try:
    import torch_mlir.ir as mlir
    from torch_mlir.dialects import ext, irdl
    from torch_mlir.passmanager import PassManager
except ImportError as error:  # the base install runs programs only
    raise StrettoError(
        "E0501",
        f'the compiler needs "torch-mlir", which cannot be imported here: {error}',
        help=_INSTALL,
    ) from error

for _owner, _name in (
    (mlir, "DynamicType"),
    (mlir, "DenseI64ArrayAttr"),
    (mlir, "FusedLoc"),
    (mlir.InsertionPoint, "after"),
):
    if not hasattr(_owner, _name):
        raise StrettoError(
            "E0501",
            f'this "torch-mlir" is too old: its bindings have no "{_name}"',
            help=f"{_INSTALL} --upgrade",
        )

Value = Any
"""An SSA value (`mlir.Value`); the bindings carry no types."""
Operation = Any
Attribute = Any
Type = Any
Block = Any
Location = Any

__all__ = ["Attribute", "Block", "Location", "Operation", "PassManager", "Type", "Value", "ext", "irdl", "mlir"]
