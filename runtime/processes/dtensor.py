"""The DTensors that callers hold: parameters, gradients, and what optimizers make of them.

A DTensor leaves a sum or a norm over a cut dim unreduced until it is used, and some uses do not reduce it: seen with
torch 2.13, `sharded.norm().item()` is the norm of the rank's own part, and in-place operations on such results fail.
torch's own optimizers do both (Adafactor). So what callers hold is a subclass, whose operations reduce at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate


class DistributedTensor(DTensor):
    """A DTensor that is never partial: what an operation leaves unreduced is reduced before anyone sees it."""

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a torch function, and reduce what it leaves unreduced; all processes of the mesh call it alike."""
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
            if isinstance(result, DTensor):
                return _reduced(result)
            if isinstance(result, (list, tuple)) and any(isinstance(each, DTensor) for each in result):
                each = (_reduced(one) if isinstance(one, DTensor) else one for one in result)
                return type(result)(each) if type(result) in (list, tuple) else result
            return result

    def full_tensor(self, *, grad_placements: Sequence[Placement] | None = None) -> Tensor:
        """The whole tensor, on every process; all processes must ask for it, those too that have no part of it.

        Where only some ranks have parts, they put it together and the first of them sends it to everyone.
        """
        mesh = self.device_mesh
        full: Tensor = super().full_tensor(grad_placements=grad_placements)
        if mesh.size() == dist.get_world_size():
            return full
        everyones = full.detach().contiguous()
        if mesh.get_coordinate() is None:
            everyones = torch.empty(self.shape, dtype=self.dtype, device=self._local_tensor.device)
        dist.broadcast(everyones, int(mesh.mesh.flatten()[0]))
        return everyones


def _reduced(tensor: DTensor) -> DTensor:
    """The tensor without partial placements, as one that stays so; a `DistributedTensor` is given back itself."""
    if any(each.is_partial() for each in tensor.placements):
        tensor = tensor.redistribute(placements=[Replicate() if p.is_partial() else p for p in tensor.placements])
    if isinstance(tensor, DistributedTensor) or tensor.requires_grad:
        return tensor
    make: Any = DistributedTensor
    made: DistributedTensor = make(tensor._local_tensor, tensor._spec, requires_grad=False)
    return made
