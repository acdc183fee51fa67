"""What the three doors share: from a model and a plan to a program, and a program in place of a model.

This folder may import every other; none imports it but the package's root. Start reading at `compile_program.py`.
"""
