"""From global tensors with placements to one rank's local computation: reshards, padding masks, sharded vocabularies.

Start reading at `partition_tensors.py`; `reshard.py` builds the collectives of one reshard, `localize.py` rewrites
global sizes to local ones; `images/` has what ops compute on images that are cut in space. Which placements an op
allows is in `passes/sharding/`.
"""
