"""How long kernels and collectives take on a GPU: formulas over shapes, with few constants a GPU and format.

- `gpu.py`: what a GPU is, read from a small file of `costs/gpus`: facts of its data sheet, and fitted constants.
- `matmul.py`: matrix products, alone and in groups. `attention.py`: attention over a prompt, and one step of decoding.
- `memory_bound.py`: everything that only moves bytes. `collective.py`: collectives inside one node.

Times are in seconds; shapes may be numpy arrays, for many kernels at once. `benchmarks/fit_costs.py` fits the
constants, and `benchmarks/accuracy.py` says how far the formulas are from measurements that they were not fitted to.
"""
