"""Libraries whose ops are in the table, and the modules that register them with torch.

A program or a module's text that names such an op must not make this process import the library: an import runs code.
So the registering module is imported only where the process has the library already, or the caller allows its ops.
"""

from __future__ import annotations

import sys
from importlib import import_module

REGISTERED_BY = {"transformers": "transformers.integrations.moe"}
"""By namespace, the module whose import registers the ops with torch."""


def register_if_imported(namespace: str) -> None:
    """Register the ops of a library that this process has imported."""
    if namespace in sys.modules:
        register(namespace)


def register(namespace: str) -> None:
    """Register the ops of a library; raises ImportError where it is not installed. Nothing for other namespaces."""
    if namespace in REGISTERED_BY:
        import_module(REGISTERED_BY[namespace])


def missing_import(namespace: str) -> str:
    """The way out where the ops of a library are not registered; empty for other namespaces."""
    if namespace not in REGISTERED_BY:
        return ""
    allowed = f'"{namespace}::*"'
    return f"pass --allow-ops {allowed}; in Python import {namespace} first, or call stretto.allow_ops({allowed})"
