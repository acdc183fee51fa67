"""Generators of schedules: published patterns, and searches.

Start reading at `one_chunk.py`; `schedules/catalogue.py` maps names to generators.
"""
