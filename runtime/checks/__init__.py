"""Does a program compute what the model computes on one device? `stretto run --check` asks here.

Start reading at `program_check.py`; `model_and_program.py` runs both, `report.py` holds what was found. Not here: the
proof of order (`prover/`), and checks of passes (`driver/check/`).
"""
