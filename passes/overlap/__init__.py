"""Passes that overlap communication with computation: split, move and start collectives early, wait for them late.

Start reading at `start_collectives.py`.
"""
