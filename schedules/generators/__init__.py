"""Generators of schedules: published patterns, and searches.

By the shape of what a rank holds: `one_chunk.py` (gpipe, 1f1b, zb-h1, zb-h2), `looped.py` (interleaved, breadth-first),
`v_shaped.py` (dualpipe-v, and the pattern that zb-v starts from), `building_blocks.py` (v-half, v-min); by search
`heuristics.py` (zb-v, zb-auto, memory caps) and `automatic.py` (auto).
`schedules/catalogue.py` maps each name to its generator. Start reading at `one_chunk.py`.
"""
