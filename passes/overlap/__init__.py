"""Passes that let communication run beside computation: collectives split, moved, started early and waited on late.

Start reading at `start_collectives.py`.
"""
