"""Communication between ranks by the names of its operations: the collectives, with what each takes and gives.

What the dialect declares, the verifier demands, passes build, lowering spells out and reports count is read from here.
The runtime and its prover have a table of their own, so that they check what the compiler says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]

RESHARD = "comm.reshard"
ALL_REDUCE = "comm.all_reduce"
ALL_GATHER = "comm.all_gather"
REDUCE_SCATTER = "comm.reduce_scatter"
ALL_TO_ALL = "comm.all_to_all"
PERMUTE = "comm.permute"
ALL_TO_ALL_ROWS = "comm.all_to_all_rows"
ALL_REDUCE_COALESCED = "comm.all_reduce_coalesced"
ALL_GATHER_COALESCED = "comm.all_gather_coalesced"
REDUCE_SCATTER_COALESCED = "comm.reduce_scatter_coalesced"
SEND = "comm.send"
RECEIVE = "comm.receive"
RECEIVE_START = "comm.receive_start"
EXPERT_LINEAR = "comm.expert_linear"
EXPERT_OUTER_PRODUCTS = "comm.expert_outer_products"
WAIT = "comm.wait"


@dataclass(frozen=True)
class Collective:
    """One collective. Its asynchronous form takes the same and gives a future, which `comm.wait` takes."""

    name: str
    constants: str
    """What it takes behind its tensor, as a schema has it: "str[] axes, int dim"."""
    split: str = ""
    """The constant that names the dim whose extent the group's size divides; "" for none."""
    joined: str = ""
    """The constant that names the dim whose extent is multiplied by the group's size; "" for none."""
    rounds: int = 1
    """How often a ring passes the tensor on: an all-reduce is a reduce-scatter and an all-gather."""
    is_one_message: bool = False
    """Whether each member sends its whole tensor to one other, and receives one."""
    bound: str = ""
    """The constant that is the extent of dim 0 of its result; "" for none."""
    coalesces: str = ""
    """The collective that it does for each of a list of tensors, in one call; "" for one that takes one tensor."""

    @property
    def start(self) -> str:
        """The name of its asynchronous form."""
        return f"{self.name}_start"

    @property
    def kind(self) -> str:
        """Its name in reports: "all_reduce"."""
        return self.name.removeprefix("comm.")

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of what it takes behind its tensor, in order."""
        return tuple(part.split()[-1] for part in self.constants.split(", "))

    @property
    def counts(self) -> tuple[str, ...]:
        """The names of the tensors among them: numbers of rows."""
        return tuple(part.split()[-1] for part in self.constants.split(", ") if part.startswith("Tensor "))

    def schema(self, name: str) -> str:
        """The schema of one of its two forms."""
        tensor = "Tensor[]" if self.coalesces else "Tensor"
        return f"{name.replace('.', '::')}({tensor} x, {self.constants}) -> {tensor}"

    def result_shapes(self, shapes: Sequence[Shape], constants: Sequence[object], ranks: int) -> Iterator[Shape | None]:
        """The shape of each result, by operand; like `result_shape`."""
        for index, shape in enumerate(shapes):
            if self.coalesces:
                yield COLLECTIVES[self.coalesces].result_shape(shape, constants_of_part(constants, index), ranks)
            else:
                yield self.result_shape(shape, constants, ranks)

    def result_shape(self, shape: Shape, constants: Sequence[object], ranks: int) -> Shape | None:
        """What a rank gets, of an operand of this shape on each of `ranks`; None where they do not divide the dim.

        Raises IndexError for a dim that the operand does not have.
        """
        given, extents = dict(zip(self.arguments, constants, strict=True)), list(shape)
        split, joined = given.get(self.split), given.get(self.joined)
        if isinstance(split, int):
            if extents[split] % ranks:
                return None
            extents[split] //= ranks
        if isinstance(joined, int):
            extents[joined] *= ranks
        bound = given.get(self.bound)
        if isinstance(bound, int):
            extents[0] = bound
        return tuple(extents)


COLLECTIVES = {
    each.name: each
    for each in (
        Collective(ALL_REDUCE, "str[] axes, str reduce", rounds=2),
        Collective(ALL_GATHER, "str[] axes, int dim", joined="dim"),
        Collective(REDUCE_SCATTER, "str[] axes, int dim, str reduce", split="dim"),
        Collective(ALL_TO_ALL, "str[] axes, int split_dim, int concat_dim", split="split_dim", joined="concat_dim"),
        Collective(PERMUTE, "str[] axes, int shift", is_one_message=True),
        Collective(ALL_TO_ALL_ROWS, "str[] axes, int bound, Tensor send_counts, Tensor receive_counts", bound="bound"),
        Collective(ALL_REDUCE_COALESCED, "str[] axes, str reduce", rounds=2, coalesces=ALL_REDUCE),
        Collective(ALL_GATHER_COALESCED, "str[] axes, int[] dims", joined="dims", coalesces=ALL_GATHER),
        Collective(
            REDUCE_SCATTER_COALESCED, "str[] axes, int[] dims, str reduce", split="dims", coalesces=REDUCE_SCATTER
        ),
    )
}
"""By the name of the synchronous form."""

EXPERT_PRODUCTS = {
    each.name: each
    for each in (
        Collective(EXPERT_LINEAR, "Tensor weight, Tensor experts, str[] axes, int bound, bool capped"),
        Collective(EXPERT_OUTER_PRODUCTS, "Tensor b, Tensor experts, str[] axes, int count, int bound, bool capped"),
    )
}
"""Products by expert where experts are cut over ranks: they exchange rows. `route-rows` spells them out in others."""

COALESCED = {each.coalesces: each for each in COLLECTIVES.values() if each.coalesces}
"""By the name of a collective of one tensor: the one that does it for a list of tensors, a bucket."""


def constants_of_part(constants: Sequence[object], index: int) -> list[object]:
    """The constants of a coalesced collective for its tensor `index`: `dims` has a dim for each."""
    axes, *rest = constants
    return [axes, *(each[index] if isinstance(each, list | tuple) else each for each in rest)]


TRANSFERS = (SEND, RECEIVE, RECEIVE_START)
"""What hands a tensor from one rank to another."""

BLOCKING = (*COLLECTIVES, RECEIVE)
"""What waits for other ranks; each has an asynchronous form."""

STARTS = frozenset((*(each.start for each in COLLECTIVES.values()), RECEIVE_START))
"""The asynchronous forms: what gives a future."""


def start_of(name: str) -> str:
    """The asynchronous form of what waits for other ranks."""
    return RECEIVE_START if name == RECEIVE else COLLECTIVES[name].start


def synchronous(name: str) -> str:
    """The synchronous form of an operation; its own name where it has no other."""
    return name.removesuffix("_start") if name in STARTS else name


def collective(name: str) -> Collective | None:
    """The collective that an operation is, in either form; None for another operation."""
    return COLLECTIVES.get(synchronous(name))
