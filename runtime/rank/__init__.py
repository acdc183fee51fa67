"""One rank runs a program: instructions become Python, and a program a step of the caller's autograd graph.

Lives here: what threads and processes share. Not here: how ranks meet (`threads/`, `processes/`). Start reading at
`executor.py`; `translate.py` writes the Python that it runs.
"""
