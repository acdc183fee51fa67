"""Gradients that are reduced by one collective: the same values in fewer messages, on threads and between processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from stretto.driver.check.lowering_check import compare_with_module, records_of
from stretto.driver.compile import compile_program
from stretto.driver.compile.request import Compiled
from stretto.driver.report.traffic import traffic_of
from stretto.ir.module import Module
from stretto.passes.default_pipeline import PipelineConfig
from stretto.passes.manager import Step
from stretto.passes.overlap.bucket_collectives import BucketCollectives
from stretto.passes.overlap.start_collectives import StartCollectives
from stretto.runtime import Program
from stretto.runtime.checks.program_check import check
from stretto.runtime.checks.report import Verdict
from stretto.runtime.processes.jobs import check_entry
from stretto.runtime.prover import prove

from ..forked_ranks import values_of_ranks
from ..subsets import some
from .checking import assert_report, compiled
from .models import Size, gpt, plan

CASE = gpt(Size(layers=1))
STORED = 'store "*" dim 0 over dp'


def bucketed(monkeypatch: pytest.MonkeyPatch, mesh: str, bucket: BucketCollectives, *lines: str) -> Compiled:
    """The program with a bucket pass before collectives are started."""
    usual = compile_program.default_pipeline

    def pipeline(config: PipelineConfig) -> list[Step]:
        steps = usual(config)
        start = next(at for at, step in enumerate(steps) if isinstance(step, StartCollectives))
        return [*steps[:start], bucket, *steps[start:]]

    with monkeypatch.context() as patch:
        patch.setattr(compile_program, "default_pipeline", pipeline)
        return compiled(CASE, plan("gpt", mesh, *lines))


def collectives(program: Program) -> dict[str, int]:
    """How many collectives a rank starts in a step, by kind."""
    counts: dict[str, int] = {}
    for site, count in traffic_of(program).items():
        counts[site.kind] = counts.get(site.kind, 0) + count
    return counts


def counted(_rank: int, folder: Path) -> dict[str, Any]:
    """The calls of the backend in a check of each program, and the bytes that they are given."""
    found: dict[str, Any] = {}
    one_round, ring = dist.all_to_all_single, dist.all_reduce

    for name in ("alone", "bucket"):
        calls: list[int] = []

        def exchanged(output: Any, given: Any, *rest: Any, calls: list[int] = calls, **more: Any) -> Any:
            calls.append(given.nbytes)
            return one_round(output, given, *rest, **more)

        def reduced(tensor: Any, *rest: Any, calls: list[int] = calls, **more: Any) -> Any:
            calls.append(tensor.nbytes)
            return ring(tensor, *rest, **more)

        dist.all_to_all_single, dist.all_reduce = exchanged, reduced
        report = check_entry({"folder": str(folder / name), "steps": 1, "seed": 1})
        wrong = [row for row in report["rows"] if row["verdict"] == Verdict.DIFFERS]
        found[name] = {"calls": len(calls), "bytes": sum(calls), "rows": len(report["rows"]), "wrong": wrong}
    dist.all_to_all_single, dist.all_reduce = one_round, ring
    return found


@pytest.mark.parametrize("mesh", some("dp=2", "dp=2, tp=2"))
def test_the_gradients_of_data_parallel_ranks_are_one_message(mesh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = bucketed(monkeypatch, mesh, BucketCollectives()).program
    buckets = [i for f in program.functions.values() for i in f.code if i.op == "comm.all_reduce_coalesced_start"]
    largest = max(buckets, key=lambda instruction: len(instruction.out))
    assert len(largest.out) == len(program.of_kind("parameter")) and largest.kwargs["axes"] == ["dp"]
    last = Module.parse(program.ir)
    assert compare_with_module(last, records_of(last), 0, {}, 1e-9, None).is_equal
    assert_report(check(program))
    assert prove(program).safe


@pytest.mark.slow
def test_stored_parameters_are_gathered_and_scattered_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    both = BucketCollectives(max_bytes=4096, kinds="all_gather,reduce_scatter")
    program = bucketed(monkeypatch, "dp=2", both, STORED).program
    assert {"all_gather_coalesced", "reduce_scatter_coalesced"} <= collectives(program).keys()
    assert_report(check(program))
    assert prove(program).safe


@pytest.mark.slow
def test_processes_send_fewer_messages_of_as_many_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone, bucket = compiled(CASE, plan("gpt", "dp=2")), bucketed(monkeypatch, "dp=2", BucketCollectives())
    parameters = len(bucket.program.of_kind("parameter"))
    assert collectives(alone.program)["all_reduce"] - collectives(bucket.program)["all_reduce"] == parameters
    sent = [sum(site.sent_bytes * n for site, n in traffic_of(each.program).items()) for each in (alone, bucket)]
    assert sent[0] == sent[1]
    for name, made in {"alone": alone, "bucket": bucket}.items():
        made.program.save(tmp_path / name)
    for report in values_of_ranks(counted, 2, tmp_path):
        assert all(report[name]["rows"] and not report[name]["wrong"] for name in ("alone", "bucket"))
        assert report["alone"]["bytes"] == report["bucket"]["bytes"]
        fewer = report["alone"]["calls"] - report["bucket"]["calls"]
        assert fewer > 0 and fewer % (parameters - 1) == 0
