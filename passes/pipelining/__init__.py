"""Pipelines: the model cut into stages, its work into segments, and an entry for each stage in a schedule's order.

The passes, in order: `average-microbatches`, `cut-stages`, `split-segments`, `order-tasks`. What they share is here:
`main` over time (`time_axis.py`, where to start reading). Schedules are in `schedules/`.
"""
