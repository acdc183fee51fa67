"""Lanes: the sequences of work that run beside each other on a rank, and the order that holds between them.

Start at `order.py`, the proof that no lane frees, overwrites or reorders what another one uses. `timeline.py` has the
tasks of lanes in time, simulated or real. Not here: deadlocks between ranks (`prover/deadlock.py`). On a CPU all lanes
run in program order.
"""
