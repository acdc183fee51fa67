"""Sharding strategies: for each op, which placements of operands on one mesh axis give which placements of results.

To add one for a new op, write it in the file of its kind and list it in that file's `TABLE`; `table.py` merges them. A
case of it goes into `tests/passes/sharding/rules/cases.py`. Start reading at `strategy.py`, then `lookup.py`, which
answers for one call. `dtensor.py` reads the strategies that torch has registered for DTensor.
"""

from .lookup import rows
from .strategy import Lowering, Row, Rules, TensorMeta, Tie

__all__ = ["Lowering", "Row", "Rules", "TensorMeta", "Tie", "rows"]
