"""Do two modules compute the same? Both are run by the interpreter on random inputs, and compared value by value.

Start reading at `compare.py`; `trace.py` and `flow.py` follow single values, to find where two modules part.
"""

from .compare import Comparison, ResultComparison, Verdict, compare
from .integer_ranges import IntegerRange
from .random_inputs import infer_ranges, integer_arguments, random_inputs

__all__ = [
    "Comparison", "IntegerRange", "ResultComparison", "Verdict", "compare", "infer_ranges", "integer_arguments",
    "random_inputs",
]  # fmt: skip
