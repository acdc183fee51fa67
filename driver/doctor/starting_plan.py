"""A plan to start from, by two rules: layers that feed one another are cut by columns, then rows; vocabularies by rows.

1. Where all that a linear layer's input comes from are linear layers, these are cut by columns and it by rows, so that
   what lies between them stays cut, and one reduction follows.
2. An embedding, and a head with as many outputs as an embedding has rows, are cut by vocabulary.

Source of the idea that rules this simple suffice: Redco (arXiv:2310.16355), section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ...dsl.globs import matches
from ...dsl.resolve import ParameterInfo
from ..text.layer_names import family
from .linear_layers import MIXTURE, LayerGraph

_LONGEST = 80
"""Characters of the patterns of one statement."""
_IN = "columns"
_ROLES = (_IN, "rows", "vocab")


@dataclass(frozen=True)
class StartingPlan:
    """The text of a plan, and the role of each weight that it cuts."""

    text: str
    roles: Mapping[str, str]


def roles_of(graph: LayerGraph) -> dict[str, str]:
    """The role of each weight that the rules speak of: "columns", "rows" or "vocab"."""
    roles: dict[str, str] = {}
    for layer in graph.layers:
        fed_by_layers = bool(layer.sources) and not layer.sources & {MIXTURE, layer.weight}
        if fed_by_layers and layer.weight not in roles and all(roles.get(s, _IN) == _IN for s in layer.sources):
            roles[layer.weight] = "rows"
            roles.update(dict.fromkeys(sorted(layer.sources), _IN))
    feeding = frozenset().union(*(layer.sources for layer in graph.layers))
    rows = set(graph.embeddings.values())
    last = [each for each in graph.layers if each.weight not in feeding and each.weight not in roles]
    heads = {each.weight: each.outputs for each in last if each.outputs in rows and MIXTURE in each.sources}
    roles.update(dict.fromkeys(heads, "vocab"))
    roles.update({name: "vocab" for name, number in graph.embeddings.items() if number in heads.values()})
    return roles


def starting_plan(
    title: str, roles: Mapping[str, str], parameters: Sequence[ParameterInfo], data: int, tensor: int
) -> StartingPlan:
    """The plan on `data` times `tensor` ranks."""
    axes = [f"{axis}={size}" for axis, size in (("dp", data), ("tp", tensor)) if size > 1] or ["dp=1"]
    lines = [f"# {title}", f"mesh ({', '.join(axes)})"]
    if not roles or tensor == 1:
        return StartingPlan("\n".join([*lines, ""]), {})
    statements = [(text, role) for role in _ROLES for text in _quoted(_patterns(role, roles, parameters))]
    width = max(len(text) for text, _ in statements)
    lines += ["", *(f"shard {text:<{width}}  {role:<7} over tp" for text, role in statements)]
    return StartingPlan("\n".join([*lines, ""]), dict(roles))


def _quoted(patterns: Sequence[str]) -> list[str]:
    """All patterns of one role for one statement, or for one each where that would be long."""
    quoted = [f'"{pattern}"' for pattern in patterns]
    together = ", ".join(quoted)
    return ([together] if together else []) if len(together) <= _LONGEST else quoted


def _patterns(role: str, roles: Mapping[str, str], parameters: Sequence[ParameterInfo]) -> list[str]:
    """Few globs over modules that match those of one role and no module of another; else their names one by one."""
    wanted = [_module(info.name) for info in parameters if roles.get(info.name) == role]
    others = {_module(alias) for info in parameters for alias in info.names} - set(wanted)
    found = []
    for generic, alike in _grouped(wanted):
        safe = not any(matches(generic, other) for other in others)
        found += [generic] if safe else alike
    return _joined(found)


def _grouped(modules: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Modules that differ only in numbers, under the name with `*` for each number."""
    groups: dict[str, list[str]] = {}
    for module in modules:
        groups.setdefault(family(module), []).append(module)
    return [(generic if len(alike) > 1 else alike[0], alike) for generic, alike in groups.items()]


def _joined(patterns: Sequence[str]) -> list[str]:
    """Patterns of one parent as one with braces; "x.*.q_proj", "x.*.k_proj" become "x.*.{q,k}_proj"."""
    joined = []
    for parent, group in groupby(
        sorted(patterns, key=lambda each: each.rpartition(".")[0]), lambda e: e.rpartition(".")[0]
    ):
        leaves = [each.rpartition(".")[2] for each in group]
        if len(leaves) == 1:
            joined.append(f"{parent}.{leaves[0]}" if parent else leaves[0])
            continue
        if not parent:
            joined += leaves
            continue
        tail = _common_tail(leaves)
        heads = [leaf[: len(leaf) - len(tail)] for leaf in leaves]
        joined.append(f"{parent}.{{{','.join(heads)}}}{tail}")
    return joined


def _parent(pattern: str) -> str:
    return pattern.rpartition(".")[0]


def _common_tail(leaves: Sequence[str]) -> str:
    """What all end in, from an underscore on."""
    first = min(leaves, key=len)
    starts = [at for at, letter in enumerate(first) if letter == "_" and at > 0]
    return next((first[at:] for at in starts if all(leaf.endswith(first[at:]) for leaf in leaves)), "")


def _module(name: str) -> str:
    """What a glob calls a parameter: the module that owns it, or the name itself where that is the model."""
    return name.rpartition(".")[0] or name
