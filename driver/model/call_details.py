"""What a call of a compiled model depends on, in words: what processes that differ are told of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...frontend.captured import Mode
from .variants import Key

_LONGEST = 80
"""Characters of the constants among the arguments that are shown."""


class CallDetails:
    """The details of one call; unknown before its key is."""

    def __init__(self) -> None:
        self.key: Key | None = None
        self.names: Sequence[str] = ()

    def __call__(self) -> Mapping[str, str]:
        """See `runtime.processes.calls.Describe`."""
        return {} if self.key is None else details_of(self.key, self.names)


def details_of(key: Key, names: Sequence[str]) -> dict[str, str]:
    """The details of a call with this key and these input names; what a user changes most is first."""
    in_training = sum(key.training)
    mode = {0: "eval()", len(key.training): "train()"}.get(in_training, f"{in_training} modules in train()")
    details = {
        "mode": mode,
        "gradients": "wanted" if key.mode is Mode.TRAIN else "not wanted",
        "no_sync": "inside" if key.delayed else "outside",
        "frozen parameters": str(key.trainable.count(False)) if key.mode is Mode.TRAIN else "none",
        "autocast": str(key.autocast or "off").removeprefix("torch."),
    }
    for name, (shape, dtype) in zip(names, key.inputs, strict=True):
        details[f'input "{name}"'] = f"{list(shape)} {str(dtype).removeprefix('torch.')}"
    details["other arguments"] = ", ".join(key.structure)[:_LONGEST]
    details["hooks"] = str(sum(key.hooks))
    return details
