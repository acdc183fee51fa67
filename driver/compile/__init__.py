"""From a model and a plan to a program: capture, passes, lowering, in this order.

Start reading at `compile_program.py`: one function, which every door calls with a `CompileRequest` (`request.py`).
`compile_target.py` is the command `stretto compile`; the list of passes is in `passes/default_pipeline.py`.
Imports `report/`, `ir_files/` and `text/`.
"""
