"""The scripts that predict published training runs, on rows and tables of a few lines: nothing is compiled."""

import dataclasses
import importlib
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROW = {
    "id": "R1", "source": "a/b:c", "location": "a sweep", "family": "internevo", "framework": "InternEvo", "model": "m",
    "n_layers": "4", "d_model": "1024", "n_heads": "8", "n_kv_heads": "8", "d_ffn": "4096", "ffn_act": "swiglu",
    "vocab": "1000", "n_experts": "", "top_k": "", "d_ffn_expert": "", "seq_len": "2048", "gpu": "H100-SXM-80GB",
    "n_gpus": "16", "gpus_per_node": "8", "internode_gbps_per_gpu": "", "tp": "1", "pp": "1", "vpp": "1", "dp": "16",
    "cp": "1", "ep": "1", "seq_parallel": "no", "schedule": "none", "mbs": "2", "gbs": "128", "precision": "bf16",
    "zero_stage": "1", "recompute": "none", "compile": "", "outcome": "ok", "tok_s_gpu": "8192", "step_time_s": "",
    "tflops_per_gpu": "", "tflops_kind": "", "peak_mem_gb": "", "mem_basis": "",
}  # fmt: skip


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """A script of the benchmarks as a module; none of them stays loaded."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def costs(script):
    """A layer's forward of 1 s of products and 0.5 s of other kernels, its backward of twice as much."""
    layer_costs = script("layer_costs")
    forward = layer_costs.Part(Counter({"matrix products": 1.0, "memory-bound": 0.5}))
    empty = layer_costs.Part()
    return layer_costs.Costs(empty, forward, empty, forward.times(2), empty)


def test_a_row_says_the_run_and_what_was_measured(script) -> None:
    rows = script("training_rows")
    run = rows.run_of(ROW)
    assert (run.microbatches, run.zero_ranks, run.cluster.nodes, run.cluster.network) == (4, 16, 2, 50e9)
    assert run.stack.name == "internevo" and run.stack.owners and not run.watts
    assert rows.measured_seconds(ROW) == pytest.approx(128 * 2048 / 8192 / 16)
    shared = rows.run_of({**ROW, "zero_stage": "1 (within 8)", "gpu": "H100-SXM-96GB-HBM2e(500W)"})
    assert (shared.zero_ranks, shared.watts, shared.cluster.gpu) == (8, 500, "H100-SXM-96GB-HBM2e")
    with pytest.raises(rows.Skipped, match="the activation is not stated"):
        rows.run_of({**ROW, "ffn_act": ""})


def test_a_step_is_its_layers_for_each_microbatch_and_less_power_is_a_lower_clock(script) -> None:
    rows, step = script("training_rows"), script("training_step")
    alone = {**ROW, "n_gpus": "1", "gpus_per_node": "1", "dp": "1", "gbs": "8", "zero_stage": "0"}
    fit = step.Fit(clock_hopper=0.8, memory=1.0, launch_us=0.0)

    def layers(row: dict[str, str]) -> float:
        found = step.Step(rows.run_of(row), fit, costs(script))
        attention = sum(found._attention)
        return (found.seconds - found._optimizer() - 16 * attention / found._clock) / 16  # layers x microbatches

    assert layers(alone) == pytest.approx(3.0 / 0.8 + 1.5)
    limited = layers({**alone, "gpu": "H100-SXM-96GB-HBM2e(500W)"})
    assert limited == pytest.approx(3.0 / 0.8 * (700 / 500) ** (1 / 3) + 1.5)


def test_ranks_that_own_tensors_take_a_collective_each_and_gather_only_among_themselves(script) -> None:
    rows, step = script("training_rows"), script("training_step")

    def gathered(zero: str, **stack: bool) -> float:
        row = {**ROW, "zero_stage": zero, "n_gpus": "1024", "dp": "1024", "gbs": "8192"}
        run = rows.run_of(row)
        run = dataclasses.replace(run, stack=dataclasses.replace(run.stack, **stack))
        return float(step.Step(run, step.FITTED, costs(script))._collective("all_gather", 1e6))

    one, each = gathered("1", owners=False), gathered("1", owners=True)
    hops = 1024 * 3.4e-6 + 128 * 4e-6
    assert one > hops
    assert each == pytest.approx(28 * one, rel=0.1)  # 7 tensors of each of 4 layers, and fewer of them than ranks
    assert gathered("1 (within 8)", owners=True) < 0.05 * each


def test_a_peak_of_memory_has_the_gradients_of_the_loss_and_the_outputs_that_a_pipeline_keeps(
    script, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, memory = script("training_rows"), script("training_memory")
    monkeypatch.setattr(memory, "saved_bytes", lambda run, keep: 1e6)
    row = {**ROW, "recompute": "full", "n_gpus": "8", "dp": "8", "gbs": "64"}
    torch, fused = (
        memory.peak_bytes(rows.run_of({**row, "framework": name}), "reserved") for name in ("torchtitan", "x")
    )
    logits = 2 * 2048 * 1024  # of the padded vocabulary
    titan, other = (rows.run_of({**row, "framework": name}).stack for name in ("torchtitan", "x"))
    parameters = memory.layer_elements(rows.run_of(row)) * 4 + 2 * 1024 * 1024
    states = [parameters * (each.whole_bytes + each.sharded_bytes / 8) for each in (titan, other)]
    assert torch - fused == pytest.approx(4 * logits + states[0] - states[1])
    staged = {**row, "framework": "Megatron-DeepSpeed", "pp": "4", "dp": "2", "schedule": "1F1B"}
    run = rows.run_of(staged)
    dropping = dataclasses.replace(run, stack=dataclasses.replace(run.stack, keeps_outputs=False))
    kept, dropped = (memory._stage_bytes(each, 0, None) for each in (run, dropping))
    assert kept - dropped == pytest.approx(4 * 2 * 2 * 2048 * 1024)  # four microbatches' outputs in 16 bits
    smi, reserved = (memory.peak_bytes(run, basis) for basis in ("nvidia-smi max", "reserved"))
    assert smi - reserved == pytest.approx(memory.CONTEXT_BYTES + memory.GROUPS * memory.GROUP_BYTES)


def test_the_report_has_medians_of_sources_and_the_order_within_a_sweep(script) -> None:
    report = script("training_report")
    rows = [{**ROW, "id": str(n)} for n in range(6)]
    measured = [1.0, 2.0, 3.0, 4.0, 5.0, 5.01]
    predicted = [1.1, 2.2, 3.3, 4.4, 4.3, 5.511]
    found = [
        {"id": row["id"], "predicted": p, "measured": m, "error": p / m - 1}
        for row, p, m in zip(rows, predicted, measured, strict=True)
    ]
    found[5] = {"id": "5", "skipped": "a reason"}
    text = "\n".join(report.lines(rows, found))
    assert "5 of 6 rows are expressed\n    1 are not: a reason" in text
    assert "median  10.0%  bias  +10.0%  a/b:c" in text
    assert "Kendall's tau of tokens a second on 1 sweeps of internevo: 0.80" in text  # one pair of ten is swapped


def test_kernel_tables_are_read_and_judged(script, tmp_path: Path) -> None:
    accuracy, tables = script("accuracy"), script("kernel_tables")
    from stretto.costs.kernels.gpu import gpu
    from stretto.costs.kernels.matmul import matmul_seconds

    time = float(matmul_seconds(4096, 4096, 4096, "bf16", gpu("H100-SXM-80GB"))) * 1e6
    lines = ["gpu,dtype,m,n,k,time_us", *(f"H100-SXM-80GB,bf16,4096,4096,4096,{time / f}" for f in (1.0, 1.1, 1.3))]
    (tmp_path / "gemm.csv").write_text("\n".join(lines) + "\n")
    [kernels] = tables.read(tmp_path)
    predicted = kernels.predicted(gpu("H100-SXM-80GB"))
    assert [round(each["error"], 6) for each in accuracy.rows(kernels, predicted)] == [0.0, 0.1, 0.3]
    assert "median  10.0%  within 20 %  67%" in accuracy.summary(kernels, predicted)


def test_the_fit_finds_the_constants_that_made_its_rows(script, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy", reason="fit_training.py alone needs it")
    fit_training, step, rows = script("fit_training"), script("training_step"), script("training_rows")
    alone = rows.run_of({**ROW, "n_gpus": "1", "gpus_per_node": "1", "dp": "1", "gbs": "8", "zero_stage": "0"})
    made = step.Fit(clock_hopper=0.8)
    found = fit_training.Rows.__new__(fit_training.Rows)
    found.steps = [fit_training.Linear(alone, made, costs(script))]
    found.measured, found.sources = [found.steps[0].seconds], np.array(["a"])
    everything = np.array([True])
    fitted = found.fit(everything, step.Fit(clock_hopper=0.9), most=120)
    assert abs(found.errors(fitted, everything)[0]) < 1e-3
