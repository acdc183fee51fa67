"""Tables of measured kernels, and what the cost model says of their rows. The tables are not part of the project.

A folder has any of `gemm.csv`, `attention.csv`, `nvlink_collectives.csv` and `moe_layers.csv`; docs/simulator.md lists
their columns. Times are in microseconds.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from stretto.costs.kernels.attention import attention_seconds, decode_seconds
from stretto.costs.kernels.collective import node_collective_seconds
from stretto.costs.kernels.experts import experts_seconds
from stretto.costs.kernels.gpu import Gpu
from stretto.costs.kernels.matmul import matmul_seconds
from stretto.costs.kernels.memory_bound import quantize_seconds

Columns = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Kernels:
    """Rows of one table, GPU and format."""

    table: str
    gpu: str
    dtype: str
    columns: Columns
    measured: NDArray[np.float64]
    """Seconds."""
    family: NDArray[np.str_]
    """What a held-out group has in common: a shape of weights, of heads, of a layer; a size of group."""
    numbers: NDArray[np.int64]
    """Rows of the file, from 1."""
    model: Callable[[Columns, str, Gpu], NDArray[np.float64]]

    def predicted(self, gpu: Gpu) -> NDArray[np.float64]:
        """Seconds."""
        return self.model(self.columns, self.dtype, gpu)


def read(folder: Path) -> Iterator[Kernels]:
    """All tables that the folder has."""
    for table, (split, family, model) in TABLES.items():
        if not (folder / f"{table}.csv").exists():
            continue
        rows = defaultdict(list)
        with (folder / f"{table}.csv").open(newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 1):
                if row.get("library", "nccl") == "nccl":  # other libraries' collectives are others' algorithms
                    rows[(row["gpu"], row["dtype"], *(row[key] for key in split))].append((number, row))
        for (gpu, dtype, *rest), found in rows.items():
            names = [name for name in found[0][1] if name not in ("gpu", "dtype", "source")]
            columns = {name: _column([row[name] for _, row in found]) for name in names}
            yield Kernels(
                "-".join((table, *rest)), gpu, {"float16": "bf16", "fp16": "bf16"}.get(dtype, dtype), columns,
                columns["time_us"] * 1e-6, np.array(["-".join(row[key] for key in family) for _, row in found]),
                np.array([number for number, _ in found]), model,
            )  # fmt: skip


def _column(texts: list[str]) -> NDArray:  # type: ignore[type-arg]
    try:
        return np.array([float(text) for text in texts])
    except ValueError:
        return np.array(texts)


def _gemm(c: Columns, dtype: str, gpu: Gpu) -> NDArray[np.float64]:
    """8-bit rows include the quantization of their first operand."""
    extra = quantize_seconds(c["m"] * c["k"], gpu) if dtype == "fp8" else 0.0
    return matmul_seconds(c["m"], c["n"], c["k"], dtype, gpu) + extra


def _attention(c: Columns, dtype: str, gpu: Gpu) -> NDArray[np.float64]:
    heads = c["heads"], c["kv_heads"], c["head_dim"]
    prompt = attention_seconds(c["batch"], c["q_len"], c["kv_len"], *heads, c["causal"] > 0, dtype, gpu)
    return np.where(c["phase"] == "decode", decode_seconds(c["batch"], c["kv_len"], *heads, dtype, gpu), prompt)


def _collective(c: Columns, dtype: str, gpu: Gpu) -> NDArray[np.float64]:
    kinds = {"alltoall": "all_to_all"}
    times = np.zeros(len(c["gpus"]))
    for op in np.unique(c["op"]):
        here = c["op"] == op
        times[here] = node_collective_seconds(kinds.get(op, op), 2 * c["elements"][here], c["gpus"][here], gpu)
    return times


def _experts(c: Columns, dtype: str, gpu: Gpu) -> NDArray[np.float64]:
    return experts_seconds(
        c["tokens"], c["hidden"], c["intermediate"], c["top_k"], c["experts"], dtype, gpu,
        tensor_ranks=c["tp"], expert_ranks=c["ep"],
    )  # fmt: skip


TABLES = {
    "gemm": ((), ("n", "k"), _gemm),
    "attention": ((), ("heads", "kv_heads", "head_dim"), _attention),
    "nvlink_collectives": ((), ("gpus",), _collective),
    "moe_layers": ((), ("hidden", "intermediate", "experts"), _experts),
}
"""For each table: the columns that divide it further, those of a family, and the model."""
