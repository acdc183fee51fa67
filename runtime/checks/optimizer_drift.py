"""The tolerance of parameters after AdamW, which may amplify the rounding of gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .model_and_program import LEARNING_RATE
from .report import CheckRow, Verdict, compare, judge


class Drift:
    """The accepted error of each parameter after some steps of AdamW, from the accepted error of its gradients."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._ratios: dict[str, Tensor] = {}
        self._steps = 0

    def note(self, gradients: Mapping[str, Tensor], rounding: float) -> None:
        """Record the reference's gradients of one step."""
        self._steps += 1
        for name, gradient in gradients.items():
            size = gradient.detach().double().abs()
            accepted = self._tolerance * float(size.max()) + rounding if size.numel() else 0.0
            ratio = accepted / size.clamp_min(torch.finfo(torch.float64).tiny)
            known = self._ratios.get(name)
            self._ratios[name] = ratio if known is None else torch.maximum(known, ratio)

    def compare(self, name: str, reference: Tensor, value: Tensor) -> CheckRow:
        """The report row of one parameter after the last step."""
        row = compare("parameter", name, reference, value, self._tolerance or None)
        if row.verdict is not Verdict.DIFFERS or row.note or name not in self._ratios:
            return row
        difference = (value.detach().double() - reference.detach().double()).abs()
        most = self._tolerance * float(reference.detach().abs().max())
        allowed = most + LEARNING_RATE * self._steps * self._ratios[name].clamp_max(2.0)
        amplified = int((difference > most).sum())
        excess = float((difference / allowed).max())
        note = f"{amplified} of {difference.numel()} elements: AdamW amplifies the rounding of gradients near zero"
        return CheckRow("parameter", name, row.error, judge(excess, 1.0), note if excess <= 1 else "")
