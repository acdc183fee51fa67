"""The pictures of docs/overlap.md: the lanes of one layer of a Llama, before and after each technique."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from ...diagnostics import StrettoError
from ...dsl.plan import Plan
from ...frontend.captured import Mode
from ...frontend.targets.load_target import load_target
from ...frontend.targets.target import Request
from ..compile.compile_program import compile_program
from ..compile.request import CompileRequest, Options
from ..report.lanes import FunctionLanes, lanes_of
from ..report.lanes_svg import svg
from ..text.text_files import write_text

FOLDER = Path(__file__).parents[2] / "docs" / "pictures" / "overlap"
_MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 4096,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
"""The layers of Llama 3 8B, of which two are alike; a small vocabulary, which no picture shows."""
_BATCH, _SEQ = 2, 4096
_TENSOR_PARALLEL = """mesh (tp=8)
shard "*.{q,k,v}_proj", "*.{gate,up}_proj" columns over tp
shard "*.o_proj", "*.down_proj" rows over tp
shard "*.embed_tokens", "lm_head" vocab over tp
"""
_TOKENS = _TENSOR_PARALLEL + "shard activations tokens over tp\n"
PICTURES: Mapping[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "level-1": (
        "backward",
        (
            ("In place: level 0", _TOKENS + "overlap { level 0 }"),
            ("Moved and ordered: level 1, memory +20%", _TOKENS + "overlap { level 1  memory +20% }"),
        ),
    ),
    "scatter-norms": (
        "forward",
        (
            ("Sums before norms", _TENSOR_PARALLEL),
            ("fuse all_reduce+rms_norm", _TENSOR_PARALLEL + "overlap { fuse all_reduce+rms_norm }"),
        ),
    ),
    "nanobatches": (
        "forward",
        (
            ("One batch", _TENSOR_PARALLEL),
            ("split batch into 2", _TENSOR_PARALLEL + "split batch into 2 { order interleave }"),
        ),
    ),
    "rings": (
        "forward",
        (
            ("Products behind gathers", _TOKENS),
            (
                "fuse all_gather+matmul, matmul+reduce_scatter",
                _TOKENS + "overlap { fuse all_gather+matmul, matmul+reduce_scatter }",
            ),
        ),
    ),
}
"""By file: which function of the layer, and each panel's title and plan."""

Compile = Callable[[str], tuple[FunctionLanes, ...]]


def picture(name: str, compiled: Compile | None = None) -> str:
    """The SVG text of one picture."""
    which, panels = PICTURES[name]
    found = []
    for title, plan in panels:
        functions = (compiled or lanes_of_layer)(plan)
        [lanes] = [each for each in functions if each.name.endswith(f"layers_{which}")]
        found.append((f"{title} ({which} of a layer)", lanes))
    return svg(found)


def lanes_of_layer(plan: str) -> tuple[FunctionLanes, ...]:
    """The lanes of the model under a plan, in bfloat16."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        file.write_text(json.dumps(_MODEL))
        target = load_target(f"hf:{file}", Request(Mode.TRAIN, batch=_BATCH, seq=_SEQ, dtype="bfloat16"))
        options = Options(loss_only=True, keep_weights=False)
        request = CompileRequest.of(target.model, (), target.inputs, Plan.parse(plan), options)
        return lanes_of(compile_program(request).program)


def write_pictures() -> int:
    """Write all pictures into a checkout's docs; returns their number. Raises E0507 outside of a checkout."""
    if not FOLDER.is_dir():
        raise StrettoError("E0507", f"'{FOLDER}' cannot be read: the pictures are written in a checkout")
    known: dict[str, tuple[FunctionLanes, ...]] = {}

    def compiled(plan: str) -> tuple[FunctionLanes, ...]:
        if plan not in known:
            known[plan] = lanes_of_layer(plan)
        return known[plan]

    for name in PICTURES:
        write_text(FOLDER / f"{name}.svg", picture(name, compiled))
    return len(PICTURES)
