"""How far the cost model is from measured kernels.

    python benchmarks/accuracy.py --kernels DIR [--json]

DIR holds tables of measurements, which `kernel_tables.py` reads; they are not part of the project. Prints the median of
the errors' magnitudes for each table, GPU and format, over kernels above 50 us (collectives: from 1 MB). With --json
prints an object for each row: id, table, gpu, predicted and measured seconds, error; or why it is skipped.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from kernel_tables import Kernels, read
from stretto.costs.kernels.gpu import gpu
from stretto.diagnostics import StrettoError

SHORTEST_S = 50e-6
LEAST_BYTES = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=Path, required=True, metavar="DIR")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    for kernels in read(arguments.kernels):
        try:
            predicted = kernels.predicted(gpu(kernels.gpu))
        except (StrettoError, KeyError) as error:
            reason = getattr(error, "message", None) or f"no constants for {error}"
            _skip(kernels, reason, arguments.json)
            continue
        if arguments.json:
            for row in rows(kernels, predicted):
                print(json.dumps(row))
        else:
            print(summary(kernels, predicted))


def rows(kernels: Kernels, predicted: np.ndarray) -> Iterator[dict[str, object]]:
    """An object for each row of the table."""
    columns = kernels.numbers.tolist(), predicted.tolist(), kernels.measured.tolist()
    for number, time, measured in zip(*columns, strict=True):
        yield {
            "id": f"{kernels.table}:{number}", "table": kernels.table, "gpu": kernels.gpu, "dtype": kernels.dtype,
            "predicted": time, "measured": measured, "error": time / measured - 1,
        }  # fmt: skip


def summary(kernels: Kernels, predicted: np.ndarray) -> str:
    """One line about the rows that are long enough to count."""
    long = kernels.measured > SHORTEST_S
    if kernels.table == "nvlink_collectives":
        long = 2 * kernels.columns["elements"] >= LEAST_BYTES
    errors = predicted[long] / kernels.measured[long] - 1
    sizes = np.abs(errors)
    return (
        f"{kernels.table:20} {kernels.gpu:16} {kernels.dtype:5} {len(errors):5} rows  median {np.median(sizes):6.1%}  "
        f"within 20 % {np.mean(sizes <= 0.2):4.0%}  within 35 % {np.mean(sizes <= 0.35):4.0%}  "
        f"bias {np.median(errors):+.1%}"
    )


def _skip(kernels: Kernels, reason: str, as_json: bool) -> None:
    if not as_json:
        print(f"{kernels.table:20} {kernels.gpu:16} {kernels.dtype:5} skipped: {reason}")
        return
    for number in kernels.numbers.tolist():
        row = {"id": f"{kernels.table}:{number}", "table": kernels.table, "gpu": kernels.gpu, "skipped": reason}
        print(json.dumps(row))


if __name__ == "__main__":
    main()
