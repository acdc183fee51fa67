"""Rewrites of the IR: one pass a file, the table that names them, and the manager that runs and verifies them.

Lives here: passes and the sharding rules they use (`sharding/`). Not here: how modules come to be (`frontend/`) or
become programs (`backends/`). Start reading at `base.py`, then `registry.py`.
"""
