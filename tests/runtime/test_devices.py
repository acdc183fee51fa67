"""A program for a GPU that is not there is refused, with what to do instead."""

from dataclasses import replace

import pytest
import torch
from stretto.runtime.devices import device_of_rank
from stretto.runtime.errors import RunError
from stretto.runtime.threads.session import RankThreads

from .tiny_programs import linear


def test_the_cpu_is_the_device_of_a_program_for_the_cpu() -> None:
    assert device_of_rank("cpu") == torch.device("cpu")


def test_without_a_gpu_a_program_for_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match=r'E0364.*target "cuda"(.|\n)*--target cpu'):
        device_of_rank("cuda")


def test_two_processes_on_one_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert device_of_rank("cuda") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(RunError, match=r"E0364.*process 1 of this machine has no GPU(.|\n)*at most 1 processes"):
        device_of_rank("cuda")


def test_threads_run_on_the_cpu_also_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    program = linear()
    with pytest.raises(RunError, match=r"E0364.*ranks as threads run on the CPU(.|\n)*torchrun"):
        RankThreads(replace(program, manifest=replace(program.manifest, target="cuda")))


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(RunError, match=r'E0364.*target "abacus"(.|\n)*cpu or cuda'):
        device_of_rank("abacus")
