"""From global tensors with placements to what one rank computes: resharding, masks for padding, split vocabularies.

Start reading at `partition_tensors.py`; `reshard.py` makes the collectives of one change of placement, `localize.py`
rewrites global sizes to a rank's. Which placements an op allows is in `passes/sharding/`.
"""
