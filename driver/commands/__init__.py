"""The commands, one module each: `HELP`, `add_arguments(parser)` and `run(arguments)`; `cli.py` lists them.

Importing them is fast, so that `stretto --help` is fast: a command imports its work from `driver/` when it runs.
`outcome.py` is what `run` returns, `arguments.py` the arguments that several commands share.
"""
