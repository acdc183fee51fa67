"""What makes a schedule: the published ones, by their patterns, and searches.

Start reading at `one_chunk.py`; which name belongs to which generator is in `schedules/catalogue.py`.
"""
