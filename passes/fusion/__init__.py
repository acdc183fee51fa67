"""Fused regions: chains of small operations become functions that a target may run as one kernel.

Start at `fuse_regions.py`. `fusible.py` says which operations a region may hold, `grouping.py` which ones go together,
`outlining.py` makes the functions. Not here: the kernels (`backends/triton/`).
"""
