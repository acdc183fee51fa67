"""Ranks that are threads of this process: full tensors in, full tensors out.

Start reading at `session.py`; `communicator.py` has the collectives, `rendezvous.py` where ranks wait for each other.
"""
