"""Let a forward read the old value of a buffer that it replaces, before autograd.

Before                                        After
  %y = mul(%x, %mean)                           %old = clone(%mean)
  copy_(%mean, %new)                            %y = mul(%x, %old)
                                                copy_(%mean, %new)

`self.mean = new` leaves the old tensor as it is, and a backward may need it. In the trace the new value is written into
the old tensor, which autograd would take for a change of what it keeps.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

aten = torch.ops.aten


def read_old_values(forward: fx.Graph, replaced: Collection[str]) -> None:
    """Rewrite a forward in place; `replaced` are the buffers, as the graph's `get_attr` nodes name them."""
    for node in forward.find_nodes(op="get_attr"):
        if node.target not in replaced:
            continue
        reads = [user for user in node.users if not (user.target is aten.copy_.default and user.args[0] is node)]
        with forward.inserting_after(node):
            old = forward.call_function(aten.clone.default, (node,))
        old.meta = dict(node.meta)
        for user in reads:
            user.replace_input_with(node, old)
