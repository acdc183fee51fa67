"""One capture for many sizes: which dims are dynamic, the trace with symbols, and the guards that it rests on.

Start reading at `symbolic_capture.py`.
"""
