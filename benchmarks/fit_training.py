"""Fit the named constants of training steps to published runs, and print how far each source is off when left out.

    python benchmarks/fit_training.py --training FILE [--keep DIR]

What is minimized is the mean over sources of the mean magnitude of a row's error (of logarithms, each at most 0.6).
Each source is left out in turn, and its errors by the constants of the others are printed; the constants that are
printed last are of all sources. Pipelines are taken as linear in the times of their parts, near the present constants.
DIR keeps compiled programs. Needs scipy.
"""

import argparse
import csv
from dataclasses import fields
from pathlib import Path

import numpy as np
from layer_costs import costs_of
from scipy.optimize import minimize  # type: ignore[import-not-found]
from stretto.diagnostics import StrettoError
from training_rows import Skipped, measured_seconds, run_of
from training_step import FITTED, Fit, Step

CAP = 0.6
MOST = 12
LOWEST = Fit(0.5, 0.5, 0.5, 1.0, 0.0, 0.0)
HIGHEST = Fit(1.1, 1.1, 1.1, 30.0, 1.0, 0.05)


class Linear(Step):
    """A step whose pipeline is linear in the times of its parts."""

    def _pipelined(self, first: float, head: float) -> float:
        times = np.array([first, head, self._forward, self._backward])
        return float(self._weights(times) @ times) + self._rest

    def _weights(self, times):
        if not hasattr(self, "_found"):
            whole = Step._pipelined(self, first=times[0], head=times[1])
            weights = []
            for index in range(4):
                more = times.copy()
                more[index] *= 1.01
                kept = self._forward, self._backward
                self._forward, self._backward = more[2], more[3]
                weights.append((Step._pipelined(self, more[0], more[1]) - whole) / (more[index] - times[index]))
                self._forward, self._backward = kept
            self._found = np.array(weights)
            self._rest = whole - float(self._found @ times)
        return self._found


class Rows:
    """The rows of a table that can be expressed."""

    def __init__(self, file: Path, keep: Path | None) -> None:
        self.steps, self.measured, sources = [], [], []
        with file.open(newline="") as table:
            for row in csv.DictReader(table):
                try:
                    run = run_of(row)
                    step = Linear(run, FITTED, costs_of(run, keep))
                    measured = measured_seconds(row)
                except (Skipped, StrettoError):
                    continue
                self.steps.append(step)
                self.measured.append(measured)
                sources.append(row["source"])
        self.sources = np.array(sources)

    def errors(self, fit: Fit, chosen):
        """The logarithms of predicted over measured, of some rows."""
        return np.array([np.log(self.steps[i].at(fit) / self.measured[i]) for i in np.flatnonzero(chosen)])

    def _some(self, chosen):
        for source in np.unique(self.sources[chosen]):
            own = np.flatnonzero(chosen & (self.sources == source))
            yield from own[np.unique(np.linspace(0, len(own) - 1, MOST).astype(int))]

    def fit(self, chosen, start: Fit, most: int = 250) -> Fit:
        """The constants that suit some rows: at most `MOST` of each source, spread over its table."""
        chosen = np.isin(np.arange(len(self.sources)), list(self._some(chosen)))
        names = [field.name for field in fields(Fit)]
        low, high = (np.array([getattr(each, name) for name in names]) for each in (LOWEST, HIGHEST))
        sources = self.sources[chosen]

        def constants(x) -> Fit:
            return Fit(**dict(zip(names, (low + (high - low) * np.clip(x, 0, 1)).tolist(), strict=True)))

        def loss(x) -> float:
            sizes = np.minimum(np.abs(self.errors(constants(x), chosen)), CAP)
            outside = np.sum(np.abs(x - np.clip(x, 0, 1)))
            return float(np.mean([np.mean(sizes[sources == each]) for each in np.unique(sources)]) + outside)

        first = (np.array([getattr(start, name) for name in names]) - low) / (high - low)
        simplex = np.vstack([first, *(first + np.where(first[i] > 0.5, -0.2, 0.2) * np.eye(6)[i] for i in range(6))])
        found = minimize(
            loss, first, method="Nelder-Mead", options={"maxfev": most, "initial_simplex": simplex, "xatol": 1e-3}
        )
        return constants(found.x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, required=True, metavar="FILE")
    parser.add_argument("--keep", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    rows = Rows(arguments.training, arguments.keep)
    everything = np.ones(len(rows.sources), dtype=bool)
    whole = rows.fit(everything, FITTED)
    print(f"{len(rows.sources)} rows of {len(set(rows.sources))} sources")
    medians = []
    for source in dict.fromkeys(rows.sources):
        held = rows.sources == source
        errors = np.expm1(rows.errors(rows.fit(~held, whole, most=80), held))
        medians.append(np.median(np.abs(errors)))
        print(f"{len(errors):5} rows  left out: median {medians[-1]:6.1%}  bias {np.median(errors):+7.1%}  {source}")
    print(f"mean of the medians of the sources that are left out: {np.mean(medians):.1%}")
    errors = np.abs(np.expm1(rows.errors(whole, everything)))
    inside = [np.median(errors[rows.sources == source]) for source in dict.fromkeys(rows.sources)]
    print(f"fitted on all: mean of medians {np.mean(inside):.1%}, rows within 20 %: {np.mean(errors <= 0.2):.0%}")
    print(whole)


if __name__ == "__main__":
    main()
