"""Which ops of torch a program may call, and what their kernels need of the strides of their operands.

Lives here: the table (`op_table.txt`, read by `table.py`), the custom ops that the caller of Stretto allows beside it
(`allowed.py`), and the one that Stretto registers with torch (`grouped_mm.py`). Compiler and runtime read the same
table, so that nothing is compiled that cannot be loaded. Not here: Stretto's own ops (`comm.*`, `rank.*`) and the
refusal at load (`runtime/program/ops.py`), the refusal at capture (`frontend/graph/unknown_ops.py`), how ops run or are
sharded.
"""
