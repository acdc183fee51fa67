"""Small modules as text: `main` with a body, on a mesh, at a level."""

from __future__ import annotations

import json

from stretto.ir.module import Module

MESH = (("dp", 2), ("tp", 3))


def module(
    arguments: str, results: str, body: str, *, level: str = "comm", mesh: tuple[tuple[str, int], ...] = MESH
) -> Module:
    """`arguments` as "%a: tensor<..>, ..", `results` as types, `body` ending with a return; other functions may follow.

    A body may hold "} func.func ... {" to end `main` and add a function.
    """
    axes = json.dumps([list(axis) for axis in mesh])
    attributes = f'comm.level = "{level}", comm.mesh = {axes}'
    return Module.parse(
        f"module attributes {{{attributes}}} {{ func.func @main({arguments}) -> ({results}) {{\n{body}\n}} }}"
    )


def at(path: str, line: int) -> str:
    """A location's text."""
    return f'loc(fused<{{backward = false}}>["{path}", "model.py":{line}:0])'
