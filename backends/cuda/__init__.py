"""A program on the streams of a GPU: planned, issued, recorded and proved.

Start at `planning.py`, which gives every instruction its stream, and `issue.py`, which drives a device with the result.
`recording.py` is a device that only writes a log; `proof.py` and `agreement.py` prove the logs of all ranks.
"""
