"""Ranks as threads of this process: callers pass and get global tensors.

Start reading at `session.py`. `communicator.py` has the collectives, `rendezvous.py` the state of one under way.
"""
