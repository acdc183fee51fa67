"""From global tensors with placements to what one rank computes: moves, masks for padding, and split vocabularies.

The pass is `passes/partition_tensors.py`; start there. Rules of which placements an op allows are in `sharding/`.
"""
