"""Numerical checks: a program against the model on one device (`stretto run --check`).

Start reading at `program_check.py`. `model_and_program.py` runs both sides, `report.py` has the results. Not here: the
order prover (`prover/`), and checks of passes (`driver/check/`).
"""
