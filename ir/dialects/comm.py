"""The `comm` dialect: operations that depend on the rank or communicate between ranks.

Axes are names of mesh axes, outermost first; a group is the ranks that differ only on them, numbered row-major.
`reshard` is the only operation at level `aten`; its result type has the wanted placement.
The collectives see equal (padded) shapes on all ranks of a group. A `_start` returns a future
(`!async.value<tensor>`) that `wait` must take exactly once; the starts and waits are not pure, so nothing moves them.
`permute` gives member i of a group of n the tensor of member (i - shift) mod n.
`all_to_all_rows` sends the first rows of a tensor to the members of a group: `send_counts[0]` to the first, the next
`send_counts[1]` to the second, and so on. It gives `bound` rows, of which the first hold what came, in the order of the
members, `receive_counts[i]` from member i. Counts are int64 values; what stands in rows past them is not defined.
A `_coalesced` collective does the same for a list of tensors of one dtype, a bucket, in one call. Its `_start` gives a
future for each.
"""

from __future__ import annotations

from ..collectives import COLLECTIVES, EXPERT_PRODUCTS

COMM_SCHEMAS: tuple[tuple[str, bool], ...] = (
    ("comm::reshard(Tensor x) -> Tensor", True),
    *((each.schema(each.name), True) for each in COLLECTIVES.values()),
    *((each.schema(each.start), False) for each in COLLECTIVES.values()),
    # nn.expert_linear and nn.expert_outer_products where member i of the group has experts i * E to (i + 1) * E: the
    # product of a row is computed by the member that has its expert, which takes at most `bound` rows, and comes back
    *((each.schema(each.name), True) for each in EXPERT_PRODUCTS.values()),
    ("comm::wait(Tensor future) -> Tensor", False),
    # hand a tensor to the rank that stands at `peer` on `axis` and beside this one on all others; never waits, keeps
    # the tensor until it is taken, and what one rank sends another arrives in order; `carries` names the value, and the
    # microbatch after "@": both ends of a message have the same
    ("comm::send(Tensor x, str axis, int peer, str? carries=None) -> ()", False),
    # the next tensor that the rank at `peer` sends here, of this shape and dtype
    ("comm::receive(str axis, int peer, int[] size, ScalarType dtype, str? carries=None) -> Tensor", False),
    ("comm::receive_start(str axis, int peer, int[] size, ScalarType dtype, str? carries=None) -> Tensor", False),
    # this rank's chunk along dim, zero-padded to `chunk`; no communication
    ("comm::shard(Tensor x, str[] axes, int dim, int chunk) -> Tensor", True),
    # the 0-d int64 tensor coordinate * chunk
    ("comm::offset(str[] axes, int chunk) -> Tensor", True),
    # elements of dim at or past this rank's valid extent replaced by `fill`
    ("comm::mask(Tensor x, str[] axes, int dim, int chunk, int extent, float fill) -> Tensor", True),
    # this rank's part of nn.random's result of shape `size`: `chunks[d]` elements of dim d, which is sharded over the
    # axes in `axes[d]` ("dp,tp"; "" for a whole dim); what lies past the end of a dim is padding
    ("comm::random(Tensor state, Tensor number, int[] size, str[] axes, int[] chunks, int? below) -> Tensor", True),
)
"""(schema, whether it is pure) of each operation."""
