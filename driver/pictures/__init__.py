"""The pictures of the documentation that need the compiler, as `stretto explain --pictures` writes them.

Those of schedules are in `text/`. Start reading at `overlap.py`.
"""
