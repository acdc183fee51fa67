"""Trace the backward of a few of many equal layers, and copy it for the others.

`shortened.py` leaves layers out of a forward; `grown.py` puts their nodes into the joint graph of what is left.
"""
