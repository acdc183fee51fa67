"""What a program or module does, counted and explained: `explain`, `diff`, and the summary after `compile`.

Start reading at `explain.py`; `traffic.py` counts what crosses the links. How text looks on a terminal: `driver/text/`.
Imports `ir_files/` and `text/`.
"""
