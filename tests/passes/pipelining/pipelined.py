"""Modules cut into microbatches: the passes of a plan up to local tensors, and the collectives over microbatches."""

from __future__ import annotations

from typing import Any

import torch
from stretto.dsl import Plan
from stretto.frontend.capture.capture import capture
from stretto.frontend.capture.model_parameters import parameter_infos
from stretto.frontend.captured import Mode
from stretto.frontend.to_ir import Floats, to_module
from stretto.ir.attributes import from_attribute
from stretto.ir.dialects.comm import COLLECTIVES
from stretto.ir.module import Module, operations
from stretto.ir.pipelined_module import MICROBATCH
from stretto.passes.base import Remark
from stretto.passes.default_pipeline import PipelineConfig, default_pipeline
from stretto.passes.manager import PassManager
from stretto.passes.normalize.lower_idioms import LowerIdioms
from torch import nn


class Cut:
    """A step of a model, before and after it is cut for ranks and microbatches."""

    def __init__(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        plan: str,
        mode: Mode = Mode.TRAIN,
        *,
        delay_reductions: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.plan = Plan.parse(plan, "a.plan")
        step = capture(model, (), inputs, mode=mode, loss_only=False)
        owners = {info.name: str(info.owner_kind) for info in parameter_infos(model)}
        buffers = dict(model.named_buffers(remove_duplicate=False))
        self.whole = to_module(step, owners, floats=Floats.FLOAT64, buffers=buffers)
        self.cut = Module.parse(self.whole.text())
        config = PipelineConfig(self.plan, delay_reductions=delay_reductions, follow_precision=False)
        passes = default_pipeline(config)
        last = next(i for i, step in enumerate(passes) if isinstance(step, LowerIdioms))
        self.remarks: list[Remark] = PassManager(passes[: last + 2]).run(self.cut)

    def collectives(self, function: str = "") -> list[tuple[str, tuple[str, ...]]]:
        """The collectives over microbatches, in all functions or in one: the kind and the axes of each."""
        collectives = []
        for name, body in self.cut.functions().items():
            for op in operations(body):
                if op.operation.name in COLLECTIVES and function in ("", name):
                    axes = tuple(from_attribute(op.attributes["axes"]))
                    if MICROBATCH in axes:
                        collectives.append((op.operation.name.removeprefix("comm."), axes))
        return collectives
