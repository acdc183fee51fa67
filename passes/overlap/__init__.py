"""Passes that overlap communication with computation: split, move and start collectives early, wait for them late.

What a plan's `overlap` says becomes their options. Start reading at `start_collectives.py`.
"""
