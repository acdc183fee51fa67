"""Which placement every value has: the plan's for arguments, the cheapest legal one for the rest.

Lives here: `place-arguments`, `check-batch`, `choose-attention` (which marks attention with the plan's method),
`gather-parameters` (`store` becomes gathers), `propagate-placements`, and the choice between sharding strategies. The
sharding rule of a new op goes into `rules/`. Not here: the communication that placements need
(`passes/partition/`). Start reading at `propagate_placements.py`, then `function_placement.py` (one function),
`tracked_values.py` (values and their copies), and `choice.py`.
"""
