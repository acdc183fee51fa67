"""Compare two modules: run both in the interpreter on the same random inputs, and compare their results.

Start reading at `compare.py`; `trace.py` and `flow.py` record intermediate values, for fault localisation.
"""

from .compare import Comparison, ResultComparison, Verdict, compare
from .integer_ranges import IntegerRange
from .random_inputs import infer_ranges, integer_arguments, random_inputs

__all__ = [
    "Comparison", "IntegerRange", "ResultComparison", "Verdict", "compare", "infer_ranges", "integer_arguments",
    "random_inputs",
]  # fmt: skip
