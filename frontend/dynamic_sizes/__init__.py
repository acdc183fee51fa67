"""One capture for many sizes: dynamic dims, the symbolic trace, and its guards.

Start reading at `symbolic_capture.py`.
"""
