"""Custom ops that the caller of Stretto adds to the table: never a program folder, a plan or a module's text.

An op of a library that torch does not come with can be compiled and run where it is registered with torch, functional
by its schema, and has a fake kernel. It is computed whole by every rank unless a DTensor strategy is registered
for it, and it is ordered against all communication.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch

from ..diagnostics import StrettoError

_OF_TORCH = frozenset({"aten", "prim", "prims", "stretto"})
"""Namespaces that the table decides on alone."""
_ALLOWED: dict[str, torch._ops.OpOverload] = {}


def allow_ops(*patterns: str) -> None:
    """Let programs of this process call registered custom ops: "mylib::twist", or "mylib::*" for all of a library.

    Call it after the ops are registered, before a model that uses them is compiled or a program with them is
    loaded, and in every process that does either. Of the ops that a glob matches, those are allowed that can be:
    functional by their schema, not random, with a fake kernel. An op that is named in full must be one of these.
    Raises StrettoError E0314 where nothing is allowed.

    >>> import torch
    >>> @torch.library.custom_op("doctest_lib::double", mutates_args=())
    ... def double(x: torch.Tensor) -> torch.Tensor:
    ...     return x * 2
    >>> _ = double.register_fake(torch.empty_like)
    >>> allow_ops("doctest_lib::double")
    """
    for pattern in patterns:
        _allow(pattern)


def allowed_op(name: str) -> torch._ops.OpOverload | None:
    """The custom op called `name` ("mylib.twist.default"), where the caller allows it."""
    return _ALLOWED.get(name)


def allowed_ops() -> dict[str, torch._ops.OpOverload]:
    """The custom ops that the caller allows, by name, in the order in which they were allowed. It only grows."""
    return _ALLOWED


def why_not_allowed(op: torch._ops.OpOverload) -> str:
    """Why an op cannot be allowed; empty where it can."""
    schema = op._schema
    if schema.is_mutable:
        return "it writes to an argument"
    if torch.Tag.nondeterministic_seeded in op.tags:
        return "it draws random numbers"
    if not schema.returns or any(str(result.type) not in ("Tensor", "List[Tensor]") for result in schema.returns):
        return "it returns something other than tensors"
    if any(result.alias_info is not None for result in schema.returns):
        return "a result shares memory with an argument"
    if not torch._library.utils.has_fake_kernel(op):
        return "it has no fake kernel (torch.library.register_fake)"
    return ""


def _allow(pattern: str) -> None:
    namespace, separator, _ = pattern.partition("::")
    if not separator or namespace in _OF_TORCH or not namespace.isidentifier():
        raise StrettoError(
            "E0314",
            f"'{pattern}' names no op of a library",
            expected='"NAMESPACE::NAME" or "NAMESPACE::*", of a namespace that is not torch\'s own',
        )
    found = _registered(pattern)
    refusals = {name: why_not_allowed(op) for name, op in found.items()}
    allowed = {name: op for name, op in found.items() if not refusals[name]}
    if not allowed:
        raise _nothing_allowed(pattern, refusals)
    _ALLOWED.update(allowed)


def _registered(pattern: str) -> dict[str, torch._ops.OpOverload]:
    """The registered overloads whose qualified name the pattern matches, by their name in a program."""
    found = {}
    namespace = pattern.partition("::")[0]
    for qualified in sorted(torch._C._dispatch_get_all_op_names()):
        name, _, overload = qualified.partition(".")
        if not name.startswith(f"{namespace}::") or not (fnmatchcase(name, pattern) or fnmatchcase(qualified, pattern)):
            continue
        packet = getattr(getattr(torch.ops, namespace), name.partition("::")[2])
        found[f"{namespace}.{name.partition('::')[2]}.{overload or 'default'}"] = getattr(packet, overload or "default")
    return found


def _nothing_allowed(pattern: str, refusals: dict[str, str]) -> StrettoError:
    if not refusals:
        return StrettoError(
            "E0314",
            f"no registered op is called '{pattern}'",
            help="import what registers it before the call of stretto.allow_ops",
        )
    reasons = "; ".join(f"'{name}': {reason}" for name, reason in refusals.items())
    return StrettoError(
        "E0314",
        f"'{pattern}' cannot be allowed: {reasons}",
        expected="an op that is functional by its schema, returns tensors and has a fake kernel",
    )
