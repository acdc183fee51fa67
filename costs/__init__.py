"""What work and communication take: formulas and constants, each with its unit and its source.

- `communication.py`: the bytes that a rank sends in a collective, and what a byte on a link costs beside one in memory.
- `compute.py`: the floating-point operations and the memory traffic of one op.
- `placements.py`: relative costs of changing a placement, which encode what the propagation prefers.

A walker (of a graph, of a schedule, of a program) stays in the room that walks; it asks here what one op or one
collective costs. To come, each as a file: the devices and links of a cluster, memory with its overheads, objectives of
a search. Not here: the task times of a schedule (`schedules/costs.py`).
"""
