"""Cluster files, which describe the machine that a program is simulated on: `cluster.py` parses them."""
