"""Triton kernels for fused regions: from a function of a program to the source of one kernel.

Lives here: the generator and its tables of ops, compiling and launching kernels, their cache, the choice of block
sizes. Not here: which instructions form a region (the pass `fuse-regions`), matrix products and attention (cuBLAS and
torch's own kernels). Only `kernels.py` and `cross_compile.py` import Triton, when they are called: everything else
runs without it. Start reading at `generate.py`. docs/gpu.md shows one region on its way.
"""
