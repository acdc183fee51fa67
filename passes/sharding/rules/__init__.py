"""Sharding rules: the functions that give each op's sharding strategies on one mesh axis.

A strategy is a placement for each operand and each result. To support a new op, write its rule in the file of its kind
and list it in that file's `TABLE`; `table.py` merges them. The kinds: `views` (move, cut, copy), `factories`,
`reductions` (sums, softmax, sort), `indexing` (embedding, gather, scatter), `transformer` (attention, norms, rotary,
the nn dialect), `images` (convolution, pooling), `statistics` (batch and group norm), `pointwise` (pointwise, and what
fits no other). `blocks.py` is no kind: dims cut inside blocks. A case of it goes into
`tests/passes/sharding/rules/cases.py`. Start reading at `strategy.py`, then `lookup.py`, which finds the strategies of
one call. `dtensor.py` reads the strategies that torch has registered for DTensor.
"""

from .lookup import strategies_for
from .strategy import Lowering, OpStrategies, Strategy, TensorMeta, Tie

__all__ = ["Lowering", "OpStrategies", "Strategy", "TensorMeta", "Tie", "strategies_for"]
