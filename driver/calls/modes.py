"""The mode of a submodule that a caller changes after the first call, as in `model.block.eval()`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from .arguments import Arguments
from .eager_results import are_equal, returned

_TRIED = 8
"""Classes of submodules that are tried at most: each costs a forward in eager mode."""


@dataclass(frozen=True)
class OtherMode:
    """A call while one submodule is in the other mode than the first call had it in."""

    name: str
    """The path of the submodule."""
    training: bool
    """Whether it is in train mode then."""

    @property
    def text(self) -> str:
        """The statement of the caller, without the model."""
        return f"{self.name}.{'train' if self.training else 'eval'}()"

    @contextmanager
    def within(self, model: nn.Module) -> Iterator[None]:
        """Inside, the submodule of this model is in this mode; afterwards, each module is in the mode it was in."""
        with modes_kept(model):
            model.get_submodule(self.name).train(self.training)
            yield


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards, each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def other_mode(model: nn.Module, arguments: Arguments) -> OtherMode | None:
    """The innermost submodule whose other mode lets eager mode return something else; None if there is none.

    Of each class the last submodule is tried.
    """
    own, probe = returned(model, arguments), copy.deepcopy(model)
    for module in probe.children():
        module.train(not model.training)
    if own is None or not _returns_other(probe, arguments, own):
        return None
    last = {type(module): (name, module) for name, module in model.named_modules() if name}
    innermost = sorted(last.values(), key=lambda each: -each[0].count("."))
    for name, module in innermost[:_TRIED]:
        found, probe = OtherMode(name, not module.training), copy.deepcopy(model)
        with found.within(probe):
            if _returns_other(probe, arguments, own):
                return found
    return None


def _returns_other(model: nn.Module, arguments: Arguments, own: object) -> bool:
    result = returned(model, arguments)
    return result is not None and not are_equal(own, result)
