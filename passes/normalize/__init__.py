"""Passes before placements: idioms raised, losses and means written so that ranks can share them.

Lives here too: `lower-idioms`, which undoes `raise-idioms` at the end, and what both know of each idiom (`idioms/`).
Start reading at `raise_idioms.py`. Nothing here knows of a mesh.
"""
