"""Every item of the plan language is read from the text and compared with the program, or listed as unread.

An item that is read has an example here: a program, and a text that differs from its plan in that item alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from stretto.driver.compile import compile_target
from stretto.driver.compile.compile_program import compile_program
from stretto.driver.compile.request import CompileRequest, Options
from stretto.driver.readings.plan_rows import rows_of_plan
from stretto.dsl.plan import Plan
from stretto.frontend.capture.call import bind_call
from stretto.frontend.captured import Mode
from stretto.runtime.program.program import Program
from torch import Tensor, nn

from ...end_to_end.expert_models import WIDTH, Experts, Mixture
from ...end_to_end.test_token_sharding import GroupedAttention
from ...subsets import only
from .items_of_plans import items, unread


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.down(torch.tanh(self.up(x))))


class Net(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.register_buffer("scale", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return (x * self.scale).square().mean()


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "net": (lambda: Net(2), (4, 8, 8)),
    "deep": (lambda: Net(4), (4, 8, 8)),
    "attention": (lambda: GroupedAttention(4, 2), (4, 8, 16)),
    "experts": (lambda: Mixture(Experts, layers=1), (4, 2, WIDTH)),
}
"""By name: a model, and the shape of its input."""
SHARDED = """mesh (a=2, b=2)
axes both = a, b
shard "*.0.up" columns over a
store "*.1.up.weight" dim 0 over both
shard inputs dim 0 over b
shard buffers "scale" dim 0 over a
"""
STORED = (
    'mesh (a=2, b=2)\nshard inputs dim 0 over a\nshard inputs dim 1 over b\nzero 3 over a { only "*.up.*"  from 65B }\n'
)
BUCKETS = "mesh (dp=2)\nzero 3 over dp { prefetch 2 }\noverlap { memory +1000% }\n"
NODES = "mesh (node=2, gpu=2)\naxes dp = node, gpu\nzero 3 over dp { within gpu }\n"
RING = "mesh (cp=2, b=2)\nshard inputs dim 1 over cp\nattention over cp { method ring }\n"
TENSOR = 'mesh (tp=2)\nshard "*.up" columns over tp\nshard "*.down" rows over tp\n'
NANO = f"{TENSOR}overlap {{ level 0 }}\nsplit batch into 2\n"
FIRST = 'mesh (dp=2)\nsplit batch into 2 { in "layers.0" }\n'
KEPT = f'{TENSOR}recompute "layers.*"\n'
TOKENS = f"{TENSOR}shard activations tokens over tp\n"
AGAIN = 'mesh (dp=2)\nrecompute "layers.*"\n'
LOW = "mesh (dp=2)\nprecision { params fp32  compute bf16  reduce fp32 }\n"
STAGES = "mesh (dp=2, pp=2)\npipeline over pp { microbatches 2 }\n"
ROUTED = 'mesh (ep=2, b=2)\nexperts "*.experts" over ep { bound 1.5 }\n'


class Example(NamedTuple):
    model: str
    plan: str
    right: str
    """What the plan says."""
    other: str
    """What another says in its place."""
    row: str
    """How the name of a row begins."""


READ = {
    "mesh AXIS": Example("net", SHARDED, "(a=2, b=2)", "(b=2, a=2)", "mesh"),
    "mesh NUMBER": Example("net", SHARDED, "(a=2, b=2)", "(a=4, b=2)", "mesh"),
    "axes AXIS": Example("net", SHARDED, "= a, b", "= b, a", "layers.1.up.weight"),
    "shard PATTERN": Example("net", SHARDED, "*.0.up", "*.0.down", "layers.0.up.weight"),
    "shard ROLE": Example("net", SHARDED, "columns", "rows", "layers.0.up.weight"),
    "shard AXIS": Example("net", SHARDED, "columns over a", "columns over b", "layers.0.up.weight"),
    "shard SUBJECT": Example("net", SHARDED, 'buffers "scale" dim 0 over a', "inputs dim 1 over a", "x"),
    "shard NUMBER": Example("net", SHARDED, "inputs dim 0", "inputs dim 1", "x"),
    "store PATTERN": Example("net", SHARDED, "*.1.up.weight", "*.1.down.weight", "layers.1.up.weight"),
    "store NUMBER": Example("net", SHARDED, "dim 0 over both", "dim 1 over both", "layers.1.up.weight"),
    "store AXIS": Example("net", SHARDED, "over both", "over b", "layers.1.up.weight"),
    "zero NUMBER": Example("deep", BUCKETS, "zero 3", "zero 1", "zero level"),
    "zero AXIS": Example("net", STORED, "zero 3 over a", "zero 3 over b", "layers.0.up.weight"),
    "zero only": Example("net", STORED, "*.up.*", "*.down.*", "layers.0.up.weight"),
    "zero from": Example("net", STORED, "65B", "63B", "layers.0.up.bias"),
    "zero reduce": Example("net", STORED, "from 65B", "from 65B  reduce bf16", "zero reduce"),
    "zero keep": Example("deep", BUCKETS, "prefetch 2", "prefetch 2  keep forward", "zero level"),
    "zero prefetch": Example("deep", BUCKETS, "prefetch 2", "prefetch 1", "zero prefetch"),
    "zero bucket": Example("deep", BUCKETS, "prefetch 2", "prefetch 2  bucket 25KB", "zero bucket"),
    "zero within": Example("net", NODES, "within gpu", "within node", "zero within"),
    "attention AXIS": Example("attention", RING, "attention over cp", "attention over b", "attention over b"),
    "attention method": Example("attention", RING, "method ring", "method bidirectional", "attention over cp"),
    "attention layout": Example("attention", RING, "ring", "ring  layout zigzag", "attention over cp: layout"),
    "recompute PATTERN": Example("net", f"{TENSOR}", "tp=2)", 'tp=2)\nrecompute "layers.*"', "layers."),
    "recompute KIND": Example("net", f"{TENSOR}", "tp=2)", "tp=2)\nrecompute tanh", "recompute tanh"),
    "recompute except": Example("net", AGAIN, '"layers.*"', '"layers.*" { except tanh }', "recompute except tanh"),
    "recompute collectives": Example("net", KEPT, '"layers.*"', '"layers.*" { collectives again }', "layers."),
    "recompute memory": Example("net", AGAIN, '"layers.*"', "auto { memory 1KB }", "recompute memory"),
    "split NUMBER": Example("net", NANO, "into 2", "into 4", "split batch"),
    "split SPLIT_SUBJECT": Example("net", NANO, "split batch into 2", "split loss into 8", "split loss"),
    "split sizes": Example("net", NANO, "into 2", "into 2 { sizes 3, 1 }", "split batch sizes"),
    "split order": Example("net", NANO, "into 2", "into 2 { order interleave }", "split batch order"),
    "split in": Example("net", FIRST, "layers.0", "layers.1", "split batch"),
    "experts PATTERN": Example("experts", ROUTED, "*.experts", "*.router", "layers."),
    "experts AXIS": Example("experts", ROUTED, "over ep", "over b", "layers."),
    "experts bound": Example("experts", ROUTED, "1.5", "1", "experts bound"),
    "experts capacity": Example("experts", ROUTED, "bound 1.5", "bound 1.5  capacity 2", "capacity of layers."),
    "experts move": Example("experts", ROUTED, "bound 1.5", "bound 1.5  move weights", "experts move"),
    "overlap level": Example("net", TOKENS, "(tp=2)", "(tp=2)\noverlap { level 0 }", "overlap "),
    "overlap hide": Example("net", TOKENS, "(tp=2)", "(tp=2)\noverlap { hide send }", "overlap "),
    "overlap lanes": Example("net", TOKENS, "(tp=2)", "(tp=2)\noverlap { lanes compute, comm, tp }", "overlap "),
    "overlap memory": Example("net", TOKENS, "(tp=2)", "(tp=2)\noverlap { memory 1KB }", "overlap memory"),
    "overlap fuse": Example(
        "net", TOKENS, "(tp=2)", "(tp=2)\noverlap { fuse matmul+reduce_scatter }", "overlap fuse matmul+reduce_scatter"
    ),
    "precision params": Example("net", LOW, "params fp32", "params fp64", "precision params"),
    "precision compute": Example("net", LOW, "bf16", "fp16", "precision compute"),
    "precision reduce": Example("net", LOW, "reduce fp32", "reduce bf16", "precision reduce"),
    "pipeline AXIS": Example("deep", STAGES, "over pp", "over dp", "pipeline axis"),
    "pipeline microbatches": Example("deep", STAGES, "microbatches 2", "microbatches 4", "pipeline microbatches"),
    "pipeline transfer": Example(
        "deep", STAGES, "microbatches 2", "microbatches 2  transfer bf16", "pipeline transfer"
    ),
    "pipeline schedule": Example(
        "deep", STAGES, "microbatches 2", "microbatches 2  schedule gpipe", "pipeline schedule gpipe, rank 1"
    ),
    "pipeline chunks": Example("deep", STAGES, "microbatches 2", "microbatches 2  chunks 2", "pipeline chunks"),
    "pipeline memory": Example("deep", STAGES, "microbatches 2", "microbatches 2  memory 1", "pipeline memory"),
    "pipeline split": Example(
        "deep", STAGES, "microbatches 2", 'microbatches 2  split "layers.3"', "pipeline split layers.3"
    ),
    "pipeline per": Example("deep", STAGES, "microbatches 2", "microbatches 2  per microbatch", "pipeline per"),
}
"""By item, an example of a program that does not do what a text says."""
QUICK = [item for item, example in READ.items() if example.plan in (SHARDED, NANO)]
"""Those of two programs are in the default run."""


@cache
def compiled(name: str, text: str) -> tuple[nn.Module, Program]:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make()
    plan = Plan.parse(text)
    options = Options(mode=Mode.TRAIN, source=compile_target._compute(plan))
    return model, compile_program(
        CompileRequest(model, bind_call(model, (torch.randn(shape),), {}), plan, options)
    ).program


@pytest.mark.parametrize("item", only(QUICK, READ))
def test_a_program_that_does_not_do_what_an_item_says_has_a_row(item: str) -> None:
    example = READ[item]
    model, program = compiled(example.model, example.plan)
    assert example.plan.count(example.right) == 1
    assert not rows_of_plan(program, example.plan, model)
    rows = rows_of_plan(program, example.plan.replace(example.right, example.other), model)
    assert any(row.name.startswith(example.row) for row in rows), rows


def test_every_item_has_an_example_or_a_reason_why_it_is_not_read() -> None:
    every = [*items()]
    assert {"mesh AXIS", "zero bucket", "shard ROLE", "precision compute"} <= {*every}
    assert [item for item in every if item not in READ and item not in unread()] == []
    assert [item for item in (*READ, *unread()) if item not in every] == []
    assert [item for item in READ if item in unread()] == []
    assert all(len(reason.split()) > 3 for reason in unread().values())
