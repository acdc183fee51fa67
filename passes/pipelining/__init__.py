"""Pipelines: the model cut into stages, stages into segments, and an entry function per rank in the schedule's order.

The passes, in order: `average-microbatches`, `cut-stages`, `split-segments`, `order-tasks`. Start reading
at `microbatch_analysis.py`, which classifies the operations of `main` for all of them. Schedules are in `schedules/`.
"""
