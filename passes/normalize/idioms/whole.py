"""The idioms that stay whole in a program: functions of their own, which a target may compute in its own way."""

WHOLE = ("attention", "attention_backward")
"""What compiles outline always: what no chain of elementwise operations and reductions is."""
