"""What the three doors share: from a model and a plan to a program, and a program in place of a model.

This folder may import every other; none imports it but the package's root. Its rooms import one another one way, each
only those above it here (a test asserts that there is no circle):

- `text/` (output), `state/` (weights on disk)
- `ir_files/` (modules from files and in dumps)
- `report/` (what a program does), `cache/` (programs of earlier compiles)
- `compile/` (a model and a plan to a program)
- `model/` (`stretto.compile`), `check/`, `doctor/`
- `checkpoints/`, `debug/`
- `commands/` (the arguments of each command)

Start reading at `compile/compile_program.py`.
"""
