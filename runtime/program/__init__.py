"""The program format: what every rank runs, as data, and whether it is valid.

Lives here: reading and writing the folder, the records of `program.json`, Stretto's own ops and the refusal of any
other name (`ops.py`), named sizes, the single-device reference. Not here: the table of torch's ops (`stretto/ops`),
anything that runs a program. Start reading at `program.py`, then `records.py`. `validate.py` says what a valid program
satisfies.
"""
