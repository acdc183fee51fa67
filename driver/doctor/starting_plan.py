"""A starting plan, by two rules.

1. Where a linear layer reads only the outputs of linear layers, those are sharded by columns and it by rows. The values
   between them stay sharded, and one reduction follows.
2. An embedding, and a head with as many outputs as the embedding has rows, are sharded by vocabulary.

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
"""The most characters of the patterns of one statement."""
_COLUMNS = "columns"
_ROLES = (_COLUMNS, "rows", "vocab")


@dataclass(frozen=True)
class StartingPlan:
    """The text of a plan, and the role of each weight that it shards."""

    text: str
    roles: Mapping[str, str]


def roles_of(graph: LayerGraph) -> dict[str, str]:
    """The role of each weight that a rule applies to: "columns", "rows" or "vocab"."""
    roles: dict[str, str] = {}
    for layer in graph.layers:
        fed_by_layers = bool(layer.sources) and not layer.sources & {MIXTURE, layer.weight}
        if (
            fed_by_layers
            and layer.weight not in roles
            and all(roles.get(s, _COLUMNS) == _COLUMNS for s in layer.sources)
        ):
            roles[layer.weight] = "rows"
            roles.update(dict.fromkeys(sorted(layer.sources), _COLUMNS))
    feeding = frozenset().union(*(layer.sources for layer in graph.layers))
    vocabularies = set(graph.embeddings.values())
    unfed = [layer for layer in graph.layers if layer.weight not in feeding and layer.weight not in roles]
    heads = {
        layer.weight: layer.outputs for layer in unfed if layer.outputs in vocabularies and MIXTURE in layer.sources
    }
    roles.update(dict.fromkeys(heads, "vocab"))
    roles.update({name: "vocab" for name, number in graph.embeddings.items() if number in heads.values()})
    return roles


def starting_plan(
    title: str, roles: Mapping[str, str], parameters: Sequence[ParameterInfo], data: int, tensor: int
) -> StartingPlan:
    """The plan for a mesh of `data` times `tensor` ranks."""
    axes = [f"{axis}={size}" for axis, size in (("dp", data), ("tp", tensor)) if size > 1] or ["dp=1"]
    lines = [f"# {title}", f"mesh ({', '.join(axes)})"]
    if not roles or tensor == 1:
        return StartingPlan("\n".join([*lines, ""]), {})
    statements = [(text, role) for role in _ROLES for text in _quoted(_patterns(role, roles, parameters))]
    width = max(len(text) for text, _ in statements)
    lines += ["", *(f"shard {text:<{width}}  {role:<7} over tp" for text, role in statements)]
    return StartingPlan("\n".join([*lines, ""]), dict(roles))


def _quoted(patterns: Sequence[str]) -> list[str]:
    """The patterns of one role as one statement, or as a statement each where that would be too long."""
    quoted = [f'"{pattern}"' for pattern in patterns]
    together = ", ".join(quoted)
    return ([together] if together else []) if len(together) <= _LONGEST else quoted


def _patterns(role: str, roles: Mapping[str, str], parameters: Sequence[ParameterInfo]) -> list[str]:
    """Globs that match the modules of one role and no other module; names where no glob does."""
    wanted = [_module(info.name) for info in parameters if roles.get(info.name) == role]
    others = {_module(alias) for info in parameters for alias in info.names} - set(wanted)
    patterns = []
    for generic, modules in _grouped(wanted):
        safe = not any(matches(generic, other) for other in others)
        patterns += [generic] if safe else modules
    return _joined(patterns)


def _grouped(modules: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Modules grouped by their name with `*` for numbers."""
    groups: dict[str, list[str]] = {}
    for module in modules:
        groups.setdefault(family(module), []).append(module)
    return [(generic if len(alike) > 1 else alike[0], alike) for generic, alike in groups.items()]


def _joined(patterns: Sequence[str]) -> list[str]:
    """Patterns with one parent joined by braces: "x.*.q_proj" and "x.*.k_proj" become "x.*.{q,k}_proj"."""
    joined = []
    for parent, group in groupby(
        sorted(patterns, key=lambda pattern: pattern.rpartition(".")[0]), lambda pattern: pattern.rpartition(".")[0]
    ):
        leaves = [pattern.rpartition(".")[2] for pattern in group]
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
    """The longest common suffix that starts with an underscore."""
    first = min(leaves, key=len)
    starts = [index for index, letter in enumerate(first) if letter == "_" and index > 0]
    return next((first[index:] for index in starts if all(leaf.endswith(first[index:]) for leaf in leaves)), "")


def _module(name: str) -> str:
    """The name that globs match: the module that owns the parameter, or the parameter if the model owns it."""
    return name.rpartition(".")[0] or name
