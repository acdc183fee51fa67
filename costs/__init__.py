"""What compute and communication cost: formulas and constants, each with its unit and its source.

- `communication.py`: the bytes that a rank sends in a collective, and what a byte on a link costs beside one in memory.
- `compute.py`: the floating-point operations and the memory traffic of one op.
- `placements.py`: relative costs of changing a placement, by which `propagate-placements` chooses.

- `kernels/`: times of kernels and collectives on a GPU, for the simulator; `gpus/` has a file for each GPU.

Code that walks a graph or a program stays in its own folder, and asks here what one op or one collective costs. To
come, a file each: `memory` (with overheads), `objective` (what a search minimises). Not
here: the task times of a schedule (`schedules/costs.py`).
"""
