"""Which placement every value has: the plan's for arguments, and the cheapest legal ones for the rest.

Lives here: `place-arguments`, `propagate-placements`, and the choice between sharding strategies. A strategy for a new
op goes into `rules/`. Not here: the communication that placements need (`passes/partition/`). Start reading at
`propagate_placements.py`, then `function_placement.py` (one function), `tracked_values.py` (where values are, and how
they are moved) and `choice.py`.
"""
