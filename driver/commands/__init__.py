"""What each command takes and runs, one a module: `HELP`, `add_arguments(parser)` and `run(given)`, an `Outcome`.

Importing them is light, so that `stretto --help` is: what a command does is in `driver/`, imported when it runs.
`outcome.py` is what a command gives back, `arguments.py` the arguments that several have.
"""
