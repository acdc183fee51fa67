"""Names of repeated layers, folded: `layers.0.mlp.up` to `layers.31.mlp.up` are `layers.*.mlp.up`."""

from __future__ import annotations

from collections.abc import Sequence


def family(name: str) -> str:
    """The name with `*` for every number; names of one family are shown in one row.

    >>> family("layers.3.experts.0.up")
    'layers.*.experts.*.up'
    """
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def folded(names: Sequence[str]) -> str:
    """One name for names of one family, with `*` for the numbers that differ.

    >>> folded(["layers.0.mlp.2.weight", "layers.1.mlp.2.weight"])
    'layers.*.mlp.2.weight'
    """
    parts = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(part[0] if len(set(part)) == 1 else "*" for part in parts)
