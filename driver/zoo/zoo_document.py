"""`stretto zoo --markdown`: `docs/zoo.md`, generated from the rows' folders."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .rows import Row

_TOP = """# Zoo

Published systems as plans: a folder of `examples/zoo` each, with the plan, a tiny model and a page on what the plan
says of the system and what it leaves out. Written by `stretto zoo --markdown > docs/zoo.md` from these folders.

```
stretto zoo gpipe fsdp          # all rows without a name; it takes minutes
```

compiles a row in float64, verifies capture, every pass and the program, proves that its order is safe, and compares it
with eager PyTorch through three optimizer steps ([trust.md](trust.md)). A row is *whole* when the plan has all that the
system does, else *begun*. Published headlines are their authors' figures on their hardware; nothing here measures
speed.

"""


def zoo_document(rows: Sequence[Row]) -> str:
    """All rows as one page of Markdown."""
    listed = [
        f"| [{row.title}](../examples/zoo/{row.name}/README.md) | {'whole' if row.is_whole else 'begun'} "
        f"| {_short(row.sections['Source'])} | {_first_sentence(row.summary)} |"
        for row in rows
    ]
    table = "\n".join(("| system | row | source | what it does |", "|---|---|---|---|", *listed))
    return _TOP + table + "\n\n" + "\n".join(_section(row) for row in rows)


def _section(row: Row) -> str:
    statements = "\n".join(
        line for line in row.plan.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    )
    return (
        f"## {row.title}\n\n```plan\n{statements}\n```\n\n"
        f"*Left out:* {row.sections['Left out']}\n\n*Published headline:* {row.sections['Published headline']}\n"
    )


def _first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence."""
    return re.split(r"(?<=\.) (?=[A-Z])", text)[0]


def _short(source: str) -> str:
    return _first_sentence(source).rstrip(".")
