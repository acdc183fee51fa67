"""A tiny training step over microbatches, as `partition-tensors` leaves one, and the plans that cut it."""

from __future__ import annotations

from pathlib import Path

from stretto.dsl.plan import Plan
from stretto.ir.module import Module

RUN = "module attributes"


def toy(stages: int = 2) -> Module:
    """Two linear layers and the sum of squares, forward and backward, over two microbatches."""
    text = Path(__file__).with_name("cut_stages.mlir").read_text()
    return Module.parse(text[text.index(RUN) :].replace('["pp", 2]', f'["pp", {stages}]'))


def plan(items: str, stages: int = 2) -> Plan:
    """A plan with a pipeline over two microbatches."""
    return Plan.parse(f"mesh (pp={stages})\npipeline over pp {{ microbatches 2 {items} }}\n", "toy.plan")
