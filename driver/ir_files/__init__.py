"""Modules as files: what commands read one from, and the folders and reproducers that are written of one.

Any room of `driver/` may import this one; it imports `text/` alone.
"""
