"""One rank runs a program: instructions become Python, and a program becomes a node of the caller's autograd graph.

Lives here: what ranks as threads and ranks as processes share. Not here: communication between ranks (`threads/`,
`processes/`). Start reading at `executor.py`; `translate.py` writes the Python that it runs, on request with a watch
behind each instruction: `nan_watch.py`, `frees_watch.py`, `step_trace.py`.
"""
