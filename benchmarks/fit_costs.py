"""Fit the constants of the cost model to measured kernels, and print them as the GPUs' files hold them.

    python benchmarks/fit_costs.py --kernels DIR

DIR holds the tables that `kernel_tables.py` reads; they are not part of the project. What is minimized is the mean of
the errors' magnitudes (of logarithms, each at most 0.6), where rows below 50 us count a quarter. Families of rows are
held out in three folds, and the errors of the held-out rows are printed; the constants that are printed are of all
rows. Needs scipy.
"""

import argparse
from dataclasses import fields, replace
from pathlib import Path
from zlib import crc32

import numpy as np
from kernel_tables import Kernels, read
from scipy.optimize import minimize  # type: ignore[import-not-found]
from stretto.costs.kernels import gpu as gpus

START = {
    "gemm": gpus.Matmul(3, 0.8, 0.8, 1, 80, 0.3, 0.3, 3),
    "moe_layers": gpus.Matmul(30, 0.8, 0.85, 1, 46, 0.5, 0.5, 1),
    "attention": gpus.Attention(8, 0.8, 100, 0.7, 1, 0.5, 0.85, 0.3),
    "nvlink_collectives": gpus.Links(5, 1, 0.8, 8, 0.3, 0.7),
}
SHARES = ("math", "memory", "spread", "tail", "decode_memory", "decode_spread", "bandwidth", "switch")
LOWEST_US = 50.0
MOST_ROWS = 700


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=Path, required=True, metavar="DIR")
    for kernels in read(parser.parse_args().kernels):
        folds = np.array([crc32(name.encode()) % 3 for name in kernels.family])
        if kernels.table == "nvlink_collectives":
            folds = np.unique(kernels.family, return_inverse=True)[1]
        held = np.zeros(len(folds))
        for fold in np.unique(folds):
            gpu, _ = fit(kernels, folds != fold)
            held[folds == fold] = (kernels.predicted(gpu) / kernels.measured - 1)[folds == fold]
        _, constants = fit(kernels, np.ones(len(folds), dtype=bool))
        long = kernels.measured > LOWEST_US * 1e-6
        if kernels.table == "nvlink_collectives":
            long = kernels.columns["elements"] >= 2**19
        errors = np.abs(held[long])
        print(f"# {kernels.gpu}, {kernels.table}, {kernels.dtype}: {len(errors)} held-out rows,")
        within = f"{np.mean(errors <= 0.2):.0%} within 20 %, {np.mean(errors <= 0.35):.0%} within 35 %"
        print(f"# median {np.median(errors):.1%}, {within}")
        for field in fields(constants):
            print(f"{field.name} = {getattr(constants, field.name):.4g}")
        print(flush=True)


def fit(kernels: Kernels, rows):
    """A GPU with the constants that suit some rows, and these constants."""
    known = gpus.gpu(kernels.gpu)
    start = START[kernels.table]
    names = [field.name for field in fields(start)]
    kernels = some(kernels, rows)
    weights = np.where(kernels.measured > LOWEST_US * 1e-6, 1.0, 0.25)

    def trial(logs):
        values = {n: min(v, 1.0) if n in SHARES else v for n, v in zip(names, np.exp(logs).tolist(), strict=True)}
        constants = type(start)(**values)
        return with_constants(known, kernels, constants), constants

    def loss(logs) -> float:
        error = np.abs(np.log(kernels.predicted(trial(logs)[0]) / kernels.measured))
        return float(np.average(np.minimum(error, 0.6), weights=weights))

    first = np.log([getattr(start, name) for name in names])
    found = minimize(loss, first, method="Nelder-Mead", options={"maxfev": 700, "adaptive": True})
    return trial(found.x)


def some(kernels: Kernels, rows) -> Kernels:
    """At most `MOST_ROWS` of the rows, evenly spread over the table: more do not change the constants."""
    chosen = np.flatnonzero(rows)
    chosen = chosen[:: -(-len(chosen) // MOST_ROWS)]
    columns = {name: column[chosen] for name, column in kernels.columns.items()}
    return replace(kernels, columns=columns, measured=kernels.measured[chosen])


def with_constants(gpu: gpus.Gpu, kernels: Kernels, constants) -> gpus.Gpu:
    """The GPU with other constants for the kernels of one table."""
    match kernels.table:
        case "gemm":
            return replace(gpu, matmuls={**gpu.matmuls, kernels.dtype: constants})
        case "moe_layers":
            return replace(gpu, experts={**gpu.experts, kernels.dtype: constants})
        case "nvlink_collectives":
            return replace(gpu, links=constants)
        case _:
            return replace(gpu, attentions={**gpu.attentions, kernels.dtype: constants})


if __name__ == "__main__":
    main()
