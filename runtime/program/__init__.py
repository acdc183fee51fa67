"""The program format: what every rank runs, as data, and whether it is well formed.

Lives here: reading and writing the folder, the records that `program.json` consists of, the table of ops that a program
may call, sizes that are chosen per call, the single-device reference. Not here: anything that runs a program. Start
reading at `program.py`, then `records.py`; `validate.py` says what a sound program satisfies, `ops.py` what it may
call.
"""
