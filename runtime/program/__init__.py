"""The program format: what every rank runs, as data, and whether it is valid.

Lives here: reading and writing the folder, the records of `program.json`, the table of ops that a program may call,
named sizes, the single-device reference. Not here: anything that runs a program. Start reading at `program.py`, then
`records.py`. `validate.py` says what a valid program satisfies, `ops.py` which ops it may call.
"""
