"""Operations of other libraries that Stretto compiles. `ops/libraries.py` says who registers them with torch.

Grouped matrix product (Hugging Face's fallback for dtypes that torch's kernel does not take): the rows of `input` (S,
K) belong to E consecutive groups, group e ends before row `offs[e]`, and each row is multiplied by its group's matrix
in `weight` (E, K, N).
"""

from __future__ import annotations

LIBRARY_SCHEMAS: tuple[tuple[str, bool], ...] = (
    ("transformers::grouped_mm_fallback(Tensor input, Tensor weight, Tensor offs) -> Tensor", True),
    (
        "transformers::grouped_mm_fallback_backward(Tensor input, Tensor weight, Tensor offs, Tensor grad_output)"
        " -> (Tensor, Tensor)",
        True,
    ),
)
"""(schema, whether it is pure) of each operation."""
