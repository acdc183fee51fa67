"""How far predictions are from measured kernels, and from published training runs.

    python benchmarks/accuracy.py --kernels DIR [--json]
    python benchmarks/accuracy.py --training FILE [--only ID ...] [--keep DIR] [--json]

DIR holds tables of measured kernels, which `kernel_tables.py` reads, and which are not part of the project; FILE a
table of training runs with the columns that `training_rows.py` reads, such as `published/training.csv`. Errors of
kernels are those above 50 us (collectives: from 1 MB); of training runs a row each, and `training_report.py` sums
them up. With --json prints an object for each row: id, predicted and measured seconds and the error; or why it is
skipped.
"""

import argparse
import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from kernel_tables import Kernels, read
from stretto.costs.kernels.gpu import gpu
from stretto.diagnostics import StrettoError
from training_report import lines

SHORTEST_S = 50e-6
LEAST_BYTES = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=Path, metavar="DIR")
    parser.add_argument("--training", type=Path, metavar="FILE")
    parser.add_argument("--only", nargs="+", metavar="ID", help="some rows of the table of training runs")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where compiled programs are kept from run to run")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not (arguments.kernels or arguments.training):
        parser.error("give --kernels or --training")
    if arguments.kernels:
        _kernels(arguments.kernels, arguments.json)
    if arguments.training:
        _training(arguments.training, arguments.only, arguments.keep, arguments.json)


def _kernels(folder: Path, as_json: bool) -> None:
    for kernels in read(folder):
        try:
            predicted = kernels.predicted(gpu(kernels.gpu))
        except (StrettoError, KeyError) as error:
            reason = getattr(error, "message", None) or f"no constants for {error}"
            _skip(kernels, reason, as_json)
            continue
        if as_json:
            for row in rows(kernels, predicted):
                print(json.dumps(row))
        else:
            print(summary(kernels, predicted))


def _training(file: Path, only: list[str] | None, keep: Path | None, as_json: bool) -> None:
    with file.open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if only is None or row["id"] in only]
    results = []
    for row in rows:
        found = training_row(row, keep)
        results.append(found)
        if as_json:
            print(json.dumps(found), flush=True)
        elif "error" in found:
            run = f"{row['id']:8} {row['model']:16} {row['gpu']:14} x {row['n_gpus']:5}"
            times = f"{found['predicted']:8.3f} s of {found['measured']:8.3f} s"
            print(f"{run} {times}  {found['error']:+.1%}", flush=True)
        else:
            print(f"{row['id']:8} skipped: {found['skipped']}")
    if not as_json:
        print(*lines(rows, results), sep="\n")


def training_row(row: Mapping[str, str], keep: Path | None = None) -> dict[str, object]:
    """A published run: predicted and measured seconds of a step and the error, or why it is skipped."""
    from training_rows import Skipped, measured_seconds, run_of
    from training_step import FITTED, step_seconds

    try:
        measured, predicted = measured_seconds(row), step_seconds(run_of(row), FITTED, keep)
    except (Skipped, StrettoError) as error:
        return {"id": row["id"], "skipped": str(error)}
    found = {"id": row["id"], "predicted": predicted, "measured": measured, "error": predicted / measured - 1}
    return {**found, **_memory(row, keep)}


def _memory(row: Mapping[str, str], keep: Path | None) -> dict[str, object]:
    """The predicted and the reported peak of a rank in GB, where the row reports one."""
    from training_memory import peak_bytes
    from training_rows import run_of

    if not row.get("peak_mem_gb"):
        return {}
    unit = 2**30 / 1e9 if "GiB" in row["mem_basis"] else 1.0
    peak, measured = peak_bytes(run_of(row), row["mem_basis"], keep) / 1e9, float(row["peak_mem_gb"]) * unit
    return {"peak_gb": peak, "measured_gb": measured, "peak_error": peak / measured - 1}


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
