"""The commands, one module each: `HELP`, `add_arguments(parser)` and `run(arguments)`, which returns an `Outcome`.

Importing them is fast, so that `stretto --help` is fast: a command imports its work from `driver/` when it runs.
`outcome.py` is the result of a command, `arguments.py` the arguments that several commands share.
"""
