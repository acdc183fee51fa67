"""Reports on programs and modules: `explain`, `diff`, and the summary after `compile`.

Start reading at `explain.py`; `traffic.py` counts the communication of a step. Output on a terminal: `driver/text/`.
Imports `ir_files/` and `text/`.
"""
