"""Simulates a program on a cluster: the instructions that ranks would run, each at its price.

- `kernels.py`: what one instruction costs on a GPU.
- `layout.py`: where ranks lie on the cluster, and what a collective over an axis costs there.
- `steps.py`: a function as what is priced, once for all its calls. `events.py`: the clocks of the ranks.
- `calls.py`: what a call does to them, so that equal calls are walked once.
- `simulation.py`: a step of a program, start reading there.
"""
