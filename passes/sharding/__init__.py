"""Sharding rules: for each op, which placements of operands on one mesh axis give which placements of results.

`rules.rows` answers for a call; `localize.with_local_sizes` rewrites a call's global sizes to a rank's; `choice.py`
chooses among the rows. The communication between them is not made here. Start reading at `row.py`, then `rules.py`.
"""

from .row import Lowering, Row, Rules, TensorMeta, Tie
from .rules import rows

__all__ = ["Lowering", "Row", "Rules", "TensorMeta", "Tie", "rows"]
