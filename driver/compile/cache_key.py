"""The key of a compile in the cache: the SHA-256 of all that its program depends on.

That is the traced forward with the model's tensors and torch's state (`frontend/forward_facts.py`), the plan with its
places, the options, the named sizes, the ops and sharding strategies that the caller added, and Stretto itself: its
version, the text of its sources, and the versions of the packages that it compiles with. Left out is what does not
reach the cached program: weights, and what the manifest says of the inputs' values and of the model's file. Both are
put in when the program is taken out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from hashlib import sha256
from typing import Any

from ...frontend.forward_facts import NotKeyed, forward_facts
from ...ops.allowed import allowed_ops
from ...passes.sharding.rules.dtensor import strategies_of_the_caller
from ...runtime.program.versions import FORMAT
from .own_sources import own_state
from .request import CompileRequest
from .traced_call import TracedCall
from .whole_idioms import fuses_regions, kept_kinds

_NOT_OF_THE_PROGRAM = ("arguments", "source", "keep_weights")
"""Fields of `Options` that `new_program.completed` reads, for a fresh and for a cached program."""


def cache_key(request: CompileRequest, traced: TracedCall) -> str:
    """The key, in hexadecimal. Raises NotKeyed where something cannot be told by a text."""
    digest = sha256()
    for line in _facts(request, traced):
        digest.update(line.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()


def _facts(request: CompileRequest, traced: TracedCall) -> Iterator[str]:
    yield f"stretto {own_state()} format {FORMAT}"
    yield f"plan {dumped(request.plan)}"
    for option in fields(request.options):
        if option.name not in _NOT_OF_THE_PROGRAM:
            yield f"option {option.name} {dumped(getattr(request.options, option.name))}"
    yield f"sizes {dumped(dict(request.sizes))} {request.if_static.name} {traced.why_not!r}"
    yield f"allowed {[(name, str(op._schema)) for name, op in sorted(allowed_ops().items())]}"
    yield f"kinds {kept_kinds()} regions {fuses_regions(request.options.target)}"
    if strategies := strategies_of_the_caller():
        raise NotKeyed(f'the sharding strategy of "{strategies[0]}" is code that was registered with DTensor')
    yield from forward_facts(traced.forward)


def dumped(value: Any) -> str:
    """A value of frozen dataclasses, containers and plain values as text, every field of it. Raises NotKeyed.

    >>> dumped((1, "x", {"a": None}))
    "(1, 'x', {'a': None})"
    """
    match value:
        case None | bool() | int() | float() | str() | bytes():
            return repr(value)
        case Enum():
            return f"{type(value).__name__}.{value.name}"
        case tuple() | list():
            return f"({', '.join([dumped(item) for item in value])})"
        case Mapping():
            return f"{{{', '.join([f'{dumped(key)}: {dumped(item)}' for key, item in value.items()])}}}"
        case set() | frozenset():
            return f"{{{', '.join(sorted(map(dumped, value)))}}}"
    if is_dataclass(value) and not isinstance(value, type):
        listed = ", ".join([f"{f.name}={dumped(getattr(value, f.name))}" for f in fields(value)])
        return f"{type(value).__module__}.{type(value).__qualname__}({listed})"
    raise NotKeyed(f"the plan or an option holds a {type(value).__name__}")
