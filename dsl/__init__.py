"""The plan language: parser, frozen values with source spans, printer, and resolution against a model's tensors.

This folder imports neither torch nor the IR. Start reading at `plan.py`; the grammar is `plan.lark`. A kind of
statement is a rule of the grammar, a file with its value and its reader, a line in the table of `parser.py`, and words
in `syntax.py`. Written schedules have a grammar of their own, in plans and in files: `schedule.py`, `schedule.lark`.
"""

from .error import PlanCode, PlanError
from .globs import match
from .mesh import Mesh
from .parser import Statement
from .pipeline import Balance, Pipeline
from .plan import Plan, check_world
from .precision import FloatFormat, Precision
from .resolve import OwnerKind, ParameterInfo, ParameterSharding, resolve_parameters
from .resolve_values import batch_inputs, resolve_activations, resolve_inputs
from .schedule import WrittenSchedule
from .shard import Dim, Layout, Role, ShardActivations, ShardBuffers, ShardInputs, ShardParameters

__all__ = [
    "Balance",
    "Dim",
    "FloatFormat",
    "Layout",
    "Mesh",
    "OwnerKind",
    "ParameterInfo",
    "ParameterSharding",
    "Pipeline",
    "Plan",
    "PlanCode",
    "PlanError",
    "Precision",
    "Role",
    "ShardActivations",
    "ShardBuffers",
    "ShardInputs",
    "ShardParameters",
    "Statement",
    "WrittenSchedule",
    "batch_inputs",
    "check_world",
    "match",
    "resolve_activations",
    "resolve_inputs",
    "resolve_parameters",
]
