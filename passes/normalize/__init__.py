"""Passes before placements: raise idioms, and rewrite losses and means so that they can be sharded.

Also here: `lower-idioms`, which expands what `raise-idioms` left, and the definitions of idioms (`idioms/`). Start
reading at `raise_idioms.py`. Nothing here depends on a mesh.
"""
