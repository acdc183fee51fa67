"""The DTensor subclass that callers get: for parameters, gradients and the states of optimizers.

A DTensor leaves a sum or a norm over a sharded dim partial until it is used, and some uses do not reduce it. Seen with
torch 2.13: `sharded.norm().item()` is the norm of the rank's own part, and in-place operations on such results fail.
torch's own optimizers do both (Adafactor). So callers get a subclass whose operations reduce at once.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate
from torch.nn.utils import clip_grad
from torch.utils import _pytree as pytree

from ..errors import RunError
from .world import call, lost, watched

_ABOUT_PLACEMENTS = ("unevenly sharded", "placement", "sharding strategy", "redistribute", "mixed torch.Tensor")
"""What the RuntimeErrors of DTensor have in them that are about how a tensor lies on ranks."""
_SEVERAL_MESHES = ("must have the same mesh", "with different meshes")
"""What DTensor's errors about operands on several meshes have in them."""
_GRADIENT: Any = Tensor.grad
_READ_BY_CLIPPING = (torch.linalg.vector_norm, torch._foreach_norm, _GRADIENT.__get__)
"""What `torch.nn.utils` calls first: norms of gradients, and before that, also on a stage that has none, `.grad`."""

WRITING: frozenset[Callable[..., Any]] = frozenset(
    [
        Tensor.mul_, Tensor.add_, Tensor.sub_, Tensor.div_, Tensor.addcmul_, Tensor.addcdiv_, Tensor.lerp_,
        Tensor.sqrt_, Tensor.neg_, Tensor.abs_, Tensor.reciprocal_, Tensor.zero_, Tensor.copy_, Tensor.fill_,
    ]
)  # fmt: skip
"""Elementwise functions that write to their first operand, which each rank computes on its own part.

Optimizers make a dozen of them on each parameter, and DTensor's way through one takes longer than the operation itself
on a part of some thousand elements.
"""
ELEMENTWISE: frozenset[Callable[..., Any]] = frozenset(
    [
        Tensor.mul, Tensor.add, Tensor.sub, Tensor.div, Tensor.sqrt, Tensor.neg, Tensor.abs, Tensor.square,
        Tensor.__mul__, Tensor.__add__, Tensor.__sub__, Tensor.__truediv__, Tensor.addcmul, Tensor.addcdiv,
        torch.mul, torch.add, torch.sub, torch.div, torch.sqrt, torch.neg, torch.abs, torch.square, torch.maximum,
    ]
)  # fmt: skip
"""Elementwise functions with a new result, computed likewise."""


class DistributedTensor(DTensor):
    """A DTensor that is never partial: the partial results of its operations are reduced at once."""

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a torch function and reduce its partial results. All processes of the mesh must call it.

        Raises RunError E0359 in torch's utilities that clip gradients, where each process knows one stage's alone.
        """
        if function in _READ_BY_CLIPPING and sys._getframe(1).f_code.co_filename == clip_grad.__file__:
            _refuse_norm_of_one_stage(args[0])
        with torch._C.DisableTorchFunctionSubclass():
            quick = _on_own_parts(function, args, kwargs or {}, cls)
            if quick is not NotImplemented:
                return quick
            try:
                result = _called(function, args, kwargs or {})
            except RuntimeError as error:
                raise _in_words(function, error) from None
            if isinstance(result, DTensor):
                return _reduced(result)
            if isinstance(result, (list, tuple)) and any(isinstance(item, DTensor) for item in result):
                reduced = (_reduced(item) if isinstance(item, DTensor) else item for item in result)
                return type(result)(reduced) if type(result) in (list, tuple) else result
            return result

    def __deepcopy__(self, memo: dict[int, Any]) -> DistributedTensor:
        """A copy of this process's part, on the same mesh: for `copy.deepcopy` of models, averages and state dicts."""
        if id(self) in memo:
            known: DistributedTensor = memo[id(self)]
            return known
        if not self.is_leaf:
            raise RuntimeError("only tensors that a caller has made can be copied by deepcopy, as for plain tensors")
        make: Any = DistributedTensor
        with torch.no_grad():
            copied = make(self._local_tensor.detach().clone(), self._spec, requires_grad=False)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        else:
            copied.requires_grad_(self.requires_grad)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        if self.grad is not None:
            copied.grad = copy.deepcopy(self.grad, memo)
        result: DistributedTensor = copied
        return result

    def full_tensor(self, *, grad_placements: Sequence[Placement] | None = None) -> Tensor:
        """The global tensor. All processes must call it, including those without a part of it.

        Where only some ranks have parts, these gather it and the first of them broadcasts it.
        """
        with call("full_tensor of a parameter or gradient"), watched("full_tensor"):
            mesh = self.device_mesh
            full: Tensor = super().full_tensor(grad_placements=grad_placements)
            if mesh.size() == dist.get_world_size():
                return full
            result = full.detach().contiguous()
            if mesh.get_coordinate() is None:
                result = torch.empty(self.shape, dtype=self.dtype, device=self._local_tensor.device)
            dist.broadcast(result, int(mesh.mesh.flatten()[0]))
            return result


def _on_own_parts(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], new: Callable[..., DTensor]
) -> Any:
    """The result of a torch function by the own parts of its operands; NotImplemented where that is not its result.

    `new(part, spec)` makes the result of a function that does not write in place. The operands must be on the same
    ranks, with equal shapes and placements, of which none is partial, and nobody may ask for gradients.
    """
    in_place = function in WRITING
    if not in_place and function not in ELEMENTWISE:
        return NotImplemented
    first = args[0]
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not isinstance(first, DTensor):
        return NotImplemented
    spec = first._spec
    parts = []
    for each in args:
        if isinstance(each, DTensor):
            if each is not first and each._spec is not spec and not _lie_equally(each, first):
                return NotImplemented
            parts.append(each._local_tensor)
        elif isinstance(each, Tensor):
            return NotImplemented
        else:
            parts.append(each)
    if any(isinstance(each, Tensor) for each in kwargs.values()):
        return NotImplemented
    if any(placement.is_partial() for placement in spec.placements):
        return NotImplemented
    own = parts[0]
    result = function(*parts, **kwargs)
    if in_place:
        torch.autograd.graph.increment_version(first)
        return first
    if result.dtype != own.dtype or result.stride() != own.stride():
        return NotImplemented
    return new(result, spec, requires_grad=False)


def _lie_equally(one: DTensor, other: DTensor) -> bool:
    a, b = one._spec, other._spec
    return one.shape == other.shape and a.placements == b.placements and a.mesh == b.mesh


def _called(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result of a torch function. Operands that every rank has whole may be on another mesh of the same ranks."""
    try:
        return function(*args, **kwargs)
    except RuntimeError as error:
        if not any(words in str(error) for words in _SEVERAL_MESHES):
            raise
        operands = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, DTensor)]
        cut = [each.device_mesh for each in operands if not _is_whole(each)]
        mesh = cut[0] if cut else operands[0].device_mesh
        others = [each.device_mesh for each in operands if _is_whole(each)]
        if any(each != mesh for each in cut) or any(_ranks_of(each) != _ranks_of(mesh) for each in others):
            raise
        moved_args, moved_kwargs = pytree.tree_map_only(DTensor, lambda each: _whole_on(each, mesh), (args, kwargs))
        return function(*moved_args, **moved_kwargs)


def _is_whole(tensor: DTensor) -> bool:
    return all(placement.is_replicate() for placement in tensor.placements)


def _ranks_of(mesh: DeviceMesh) -> list[int]:
    return sorted(mesh.mesh.flatten().tolist())


def _whole_on(tensor: DTensor, mesh: DeviceMesh) -> DTensor:
    """A tensor that is whole on every rank as one of `mesh`; itself where it is on that mesh."""
    if tensor.device_mesh == mesh:
        return tensor
    return DTensor.from_local(tensor.to_local(), mesh, [Replicate()] * mesh.ndim, run_check=False)


def _refuse_norm_of_one_stage(gradients: Tensor | Sequence[Tensor]) -> None:
    """Raise RunError E0359 for gradients that not all processes have."""
    listed = [gradients] if isinstance(gradients, Tensor) else gradients
    if any(isinstance(each, DTensor) and each.device_mesh.size() < dist.get_world_size() for each in listed):
        raise RunError(
            "E0359",
            "torch.nn.utils would take the norm of the gradients of one pipeline stage for that of all",
            expected="the norm of the gradients of all stages",
            help="call stretto.clip_grad_norm_(model, max_norm)",
        )


def _in_words(function: Callable[..., Any], error: RuntimeError) -> RuntimeError | RunError:
    """An error of torch's DTensor as one of ours, where it is about connections or placements; else the error."""
    about_connections = lost(error, "an operation on a distributed tensor")
    text = str(error)
    if about_connections is not None or not any(words in text for words in _ABOUT_PLACEMENTS):
        return about_connections or error
    return RunError(
        "E0363",
        f'"{getattr(function, "__name__", "an operation")}" is not possible on a tensor of which each process has a '
        f"part: {text.splitlines()[0]}",
        help="use another optimizer (AdamW, SGD and their like work on any part), or a plan that leaves these "
        "parameters whole or shards them evenly",
    )


def _reduced(tensor: DTensor) -> DTensor:
    """The tensor as a `DistributedTensor` without partial placements; itself where it is one already."""
    if any(placement.is_partial() for placement in tensor.placements):
        tensor = tensor.redistribute(
            placements=[Replicate() if placement.is_partial() else placement for placement in tensor.placements]
        )
    if isinstance(tensor, DistributedTensor) or tensor.requires_grad:
        return tensor
    make: Any = DistributedTensor
    distributed: DistributedTensor = make(tensor._local_tensor, tensor._spec, requires_grad=False)
    return distributed
