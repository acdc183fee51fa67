"""`stretto passes --markdown`: `docs/passes.md`, generated from the passes' sources and runs of their text tests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from ...diagnostics import StrettoError
from ...dsl.mesh import Mesh
from ...dsl.pipeline import Pipeline
from ...dsl.plan import Plan
from ...ir.locations import from_location
from ...ir.module import Module, operations
from ...passes.default_pipeline import PipelineConfig, default_pipeline
from ...passes.manager import PassManager, single, step_name
from ...passes.pipeline_text import parse_pipeline
from ...passes.registry import TABLE, UPSTREAM, room
from .pass_pages import PassPage, pass_page

TEXT_TESTS = Path(__file__).parents[2] / "tests" / "passes"
"""Where the text tests are in a checkout; an installed package has none."""

_RUN = re.compile(r'^// RUN: stretto opt -p "(?P<pipeline>.*)" %s \| filecheck %s$', re.MULTILINE)
_TOP = """# Passes

Every pass that `stretto opt -p` can run, first those of a compile in their order. Written by
`stretto passes --markdown > docs/passes.md`: texts and options are those of the passes' sources, each example is the
first case of the pass's text test, run when this page was made. `stretto passes NAME` shows one of these.

"""


@dataclass(frozen=True)
class Example:
    """A small module before and after a pipeline. `plans` are the plan files that the pipeline's options name."""

    pipeline: str
    before: str
    after: str
    plans: tuple[str, ...] = ()


def passes_document() -> str:
    """All pages as one page of Markdown; E0507 where the text tests are not at hand."""
    pages = [pass_page(name) for name in _in_order()]
    rows = [f"| [`{page.name}`](#{page.name}) | {page.origin} | {page.line} |" for page in pages]
    table = "\n".join(("| pass | of | what it does |", "|---|---|---|", *rows))
    return _TOP + table + "\n\n" + "\n\n".join(_section(page) for page in pages) + "\n"


def example(name: str) -> Example:
    """The first case of a pass's text test, before and after the pass; E0507 where the file cannot be read."""
    file = TEXT_TESTS / _text_test(name)
    try:
        text = file.read_text(encoding="utf-8").split("// -----\n")[0]
    except OSError as error:
        raise StrettoError(
            "E0507",
            f'cannot read the text test "{file}", which the example of "{name}" is taken from: {error.strerror}',
            help="run this in a checkout; an installed package has no tests",
        ) from None
    run = _RUN.search(text)
    if run is None:
        raise RuntimeError(f"{file} has no RUN line")
    plans = re.findall(r"plan=%S/([\w./-]+)", run["pipeline"])
    module = Module.parse(text, str(file))
    before = _shown(module)
    PassManager(parse_pipeline(run["pipeline"].replace("%S", str(TEXT_TESTS)))).run(module)
    shown_pipeline = run["pipeline"].replace("%S/", "")
    return Example(
        shown_pipeline, before, _shown(module), tuple((TEXT_TESTS / plan).read_text("utf-8") for plan in plans)
    )


def _text_test(name: str) -> Path:
    """The file of a pass's text test, inside `TEXT_TESTS`."""
    return Path(room(name)) / f"{name.replace('-', '_')}.mlir"


def _in_order() -> list[str]:
    """Our passes and upstream's: those of a compile in its order, then the others by name."""
    plan = Plan(Mesh((("pp", 1),)), (Pipeline("pp", 1, per_microbatch=True),))
    compiled = [step_name(step) for step in single(default_pipeline(PipelineConfig(plan)))]
    return list(dict.fromkeys((*compiled, *sorted(TABLE), *sorted(UPSTREAM))))


def _section(page: PassPage) -> str:
    parts = [f"## `{page.name}`", page.line, page.prose, _facts(page), _options(page), _example(page)]
    return "\n\n".join(part for part in parts if part)


def _facts(page: PassPage) -> str:
    return "\n".join(f"- **{label}**: {text}" for label, text in page.facts.items())


def _options(page: PassPage) -> str:
    if page.origin == "mlir":
        return "A pass of upstream MLIR; options in braces are MLIR's own."
    if not page.options:
        return "No options."
    rows = [f"| `{o.name}` | {o.type} | {o.default or 'must be given'} | {o.text} |" for o in page.options]
    return "\n".join(("| option | takes | default | meaning |", "|---|---|---|---|", *rows))


def _example(page: PassPage) -> str:
    if page.origin == "mlir":
        return ""
    shown = example(page.name)
    file = _text_test(page.name)
    plans = "".join(f"```plan\n{plan}```\n\n" for plan in shown.plans)
    return (
        f"`stretto opt -p '{shown.pipeline}'` on the first case of [{file.name}](../tests/passes/{file}):\n\n"
        f"{plans}"
        f"```mlir\n{shown.before}\n```\n\nbecomes\n\n```mlir\n{shown.after}\n```"
    )


def _shown(module: Module) -> str:
    """The module's text, module paths as comments, without the module around it where that says nothing."""
    text = _with_paths(module)
    head, _, rest = text.partition("\n")
    return dedent(rest.removesuffix("}").rstrip()) if head == "module {" else text


def _with_paths(module: Module) -> str:
    """The text without locations; behind each operation, as a comment, the path of the module that it comes from."""
    paths = [
        from_location(op.location).module_path
        for function in module.functions().values()
        for op in operations(function)
    ]
    lines = str(module).rstrip().split("\n")
    of_operations = [
        index for index, line in enumerate(lines) if not line.lstrip().startswith(("module", "func.func", "}"))
    ]
    for index, path in zip(of_operations, paths, strict=True):
        lines[index] += f"  // {path}" if path else ""
    return "\n".join(lines)
