"""The accepted error of parameters after AdamW, which may amplify the rounding of gradients.

AdamW divides a gradient by its own magnitude, so the rounding of a gradient near zero decides its step. The accepted
error of gradients is therefore carried through the update: an element may differ by a further
lr * steps * min(2, accepted gradient error / |gradient|). A row that needs this has a note.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .comparing import magnitude
from .model_and_program import LEARNING_RATE
from .recording import Recording
from .report import CheckRow, Verdict


@dataclass(frozen=True)
class Drift:
    """The gradients of the reference over `steps` steps."""

    reference: Recording
    steps: int

    def judge(self, row: CheckRow, value: Tensor, accepted: float, accepted_gradient: float) -> CheckRow:
        """The row of a parameter, equal also where AdamW explains its error.

        `accepted` is the accepted error of each element without AdamW, `accepted_gradient` that of the gradient.
        """
        smallest, reference = self.reference.smallest.get(row.name), self.reference.parameters[row.name]
        if row.verdict is not Verdict.DIFFERS or value.shape != reference.shape or smallest is None:
            return row
        difference = (value.detach().double() - reference.detach().double()).abs()
        ratios = accepted_gradient / smallest.clamp_min(torch.finfo(torch.float64).tiny)
        amplified = int((difference > accepted).sum())
        if not bool((difference <= accepted + LEARNING_RATE * self.steps * ratios.clamp_max(2.0)).all()):
            return row
        note = f"{amplified} of {difference.numel()} elements: AdamW amplifies the rounding of gradients near zero"
        error = float(difference.max()) / (magnitude(reference) or 1.0)
        return replace(row, error=error, verdict=Verdict.EQUAL, note=note)
