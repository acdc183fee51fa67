"""Operations of other libraries that Stretto compiles: which there are, and what has to be imported before they run.

A grouped product (Hugging Face's, where torch's own kernel does not take the dtype): rows of `input` (S, K) belong to E
groups that lie one after another, group e ending before row `offs[e]`, and each is multiplied by its group's matrix of
`weight` (E, K, N).
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
"""The module that registers the operations of a namespace with torch when it is imported."""


def register(namespace: str) -> None:
    """Make torch know the operations of a namespace, if the library is installed."""
    module = _REGISTERED_BY.get(namespace, "")
    if module and find_spec(module.partition(".")[0]) is not None:
        import_module(module)
