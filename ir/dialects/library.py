"""Operations of other libraries that Stretto compiles, and the modules that register them with torch.

Grouped matrix product (Hugging Face's fallback for dtypes that torch's kernel does not take): the rows of `input` (S,
K) belong to E consecutive groups, group e ends before row `offs[e]`, and each row is multiplied by its group's matrix
in `weight` (E, K, N).
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

LIBRARY_SCHEMAS: tuple[tuple[str, bool], ...] = (
    ("transformers::grouped_mm_fallback(Tensor input, Tensor weight, Tensor offs) -> Tensor", True),
    (
        "transformers::grouped_mm_fallback_backward(Tensor input, Tensor weight, Tensor offs, Tensor grad_output)"
        " -> (Tensor, Tensor)",
        True,
    ),
)
"""(schema, whether it is pure) of each operation."""

_REGISTERED_BY = {"transformers": "transformers.integrations.moe"}
"""By namespace, the module whose import registers the operations with torch."""


def register(namespace: str) -> None:
    """Register the operations of a namespace with torch, if the library is installed."""
    module = _REGISTERED_BY.get(namespace, "")
    if module and find_spec(module.partition(".")[0]) is not None:
        import_module(module)
