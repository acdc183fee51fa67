"""What the three doors share: from a model and a plan to a program, and a program in place of a model.

Rooms: `model/` (`stretto.compile`), `compile/` (model and plan to program), `state/` (weights, checkpoints), `check/`,
`debug/`, `report/`, `doctor/`, `text/` (output), `commands/` (the arguments of each command). This folder may import
every other; none imports it but the package's root. Start reading at `compile/compile_program.py`.
"""
