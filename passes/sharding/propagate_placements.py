"""Give every value a placement, forward and backward, and insert a reshard where it has to change.

Before                                              After
  %h = aten.mm %x, %w : (.., t<.. {tp=shard(1)}>)     %h = aten.mm %x, %w : .. -> t<.. {tp="shard(1)"}>
  %y = aten.mm %h, %v : (.., t<.. {tp=shard(0)}>)     %y = aten.mm %h, %v : .. -> t<.. {tp="partial(sum)"}>
  %z = nn.rms_norm %y, %g                             %r = comm.reshard %y : .. -> t<..>
                                                      %z = nn.rms_norm %r, %g

Each op in order takes its cheapest legal sharding strategy on each axis (`sharding/choice.py`), given its operands'
placements. Later ops reuse the copies that reshards made; a partial value, once reduced, is not used as partial again.
A function is copied once for each combination of placements that it is called with. A gradient is resharded to its
parameter's placement right after the op that makes it, so that its reduction can start at once, in the dtype that
`cast-gradients` noted. Over the microbatch axis only sums that are known before any microbatch runs, or after all have
run, are possible (`sharding/microbatch_axis.py`); an operation that needs more is refused (E0403). A backward may need
a sum of what the forwards made, such as a balance loss's share of each expert; where folded layers make such a sum
inside, they are unfolded.

Source: the propagation of PyTorch's DTensor, applied to a whole graph; Megatron-LM's placements fall out of it.
Needs: level `aten`, placements on main's arguments (`place-arguments`).   Keeps: values.   Shapes stay global.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ...ir.bindings import Operation
from ...ir.module import Level, Module, Record, argument_records, entry
from ...ir.placement import Placement
from ...ir.types import from_mlir
from ..activation_sharding import ActivationSharding
from ..base import Pass, Report
from ..layers.unfold_layers import unfold
from .function_placement import FunctionPlacement, Signature, Specialised
from .gradient_targets import GradientTargets, gradient_targets, targets_in_layers
from .microbatch_axis import has_microbatch_axis
from .propagation_remarks import PropagationRemarks
from .tracked_values import SumInLayer


@dataclass(frozen=True)
class PropagatePlacements(Pass):
    """See the module's docstring."""

    name: ClassVar[str] = "propagate-placements"
    levels: ClassVar[frozenset[Level]] = frozenset({Level.ATEN})
    delay_reductions: bool = False
    """Leave the parameters' gradients unreduced: the caller sums them over ranks, once for several steps."""

    def run(self, module: Module) -> Report:
        try:
            return self._place(module)
        except SumInLayer:
            unfold(module)
            return self._place(module)

    def _place(self, module: Module) -> Report:
        new_module = module.successor()
        remarks = PropagationRemarks(module.mesh, ActivationSharding.of(module))
        _Functions(module, new_module, remarks, self.delay_reductions).specialise(_main_signature(module))
        module.become(new_module)
        return Report(remarks.moved, remarks.all(), remarks.effects())


def _main_signature(module: Module) -> Signature:
    main, mesh = module.functions()["main"], module.mesh
    placements = tuple(from_mlir(a.type).placement_on(mesh) for a in entry(main).arguments)
    weights = tuple(record.get("kind") == "parameter" for record in argument_records(main))
    early = tuple(has_microbatch_axis(mesh) and not is_weight for is_weight in weights)
    return Signature("main", placements, weights, early)


@dataclass
class _Functions:
    """The old and the new module, and the functions specialised so far."""

    old: Module
    new: Module
    remarks: PropagationRemarks
    delay_reductions: bool
    specialised: dict[Signature, Specialised] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    used_names: set[str] = field(init=False)
    """Names of functions, old and new."""
    in_layers: dict[str, GradientTargets] = field(init=False)
    """By function that main calls for a gradient."""

    def __post_init__(self) -> None:
        functions = self.old.functions()
        self.used_names, self.in_layers = (
            set(functions),
            targets_in_layers(functions, self._arguments(functions["main"])),
        )

    def specialise(self, signature: Signature) -> Specialised:
        """The copy of a function for these argument placements, made at its first use."""
        if signature not in self.specialised:
            name = self._name(signature.name)
            old = self.old.functions()[signature.name]
            function = FunctionPlacement(old, self.new, signature, name, self.remarks, self.specialise)
            if name == "main":
                arguments = self._arguments(old)
                function.bring_gradients_to(gradient_targets(old, arguments, delay_reductions=self.delay_reductions))
            else:
                function.targets = self.in_layers[signature.name]
            self.specialised[signature] = function.rewrite()
        return self.specialised[signature]

    def _arguments(self, main: Operation) -> list[tuple[Record, Placement]]:
        """The arguments of main: their records, and where the plan places them."""
        placements = (from_mlir(a.type).placement_on(self.old.mesh) for a in entry(main).arguments)
        return list(zip(argument_records(main), placements, strict=True))

    def _name(self, name: str) -> str:
        """The function's own name for its first copy, then that name with a free number."""
        number = self.counts.get(name, 0)
        fresh = name
        while number and fresh in self.used_names:
            fresh, number = f"{name}_{number}", number + 1
        self.counts[name] = max(number, 1)
        self.used_names.add(fresh)
        return fresh
