"""A program for a GPU that is not there is refused, with what to do instead."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from stretto.runtime.devices import device_of_rank, input_bytes, require_memory
from stretto.runtime.errors import RunError
from stretto.runtime.threads.session import RankThreads

from .tiny_programs import linear


def test_the_cpu_is_the_device_of_a_program_for_the_cpu() -> None:
    assert device_of_rank("cpu") == torch.device("cpu")


def test_without_a_gpu_a_program_for_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match=r'E0364.*target "cuda"(.|\n)*--target cpu'):
        device_of_rank("cuda")


def one_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> None:
    """Let torch say that the machine has one GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")


def test_two_processes_on_one_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one_gpu(monkeypatch)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert device_of_rank("cuda") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(RunError, match=r"E0364.*process 1 of this machine has no GPU(.|\n)*at most 1 processes"):
        device_of_rank("cuda")


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_a_gpu_of_an_older_generation_is_refused(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    one_gpu(monkeypatch, (8, 0))
    assert device_of_rank("cuda") == torch.device("cuda", 0)
    one_gpu(monkeypatch, capability)
    with pytest.raises(RunError, match=r"E0364.*Some GPU, has the compute capability 7\.(.|\n)*at least 8\.0"):
        device_of_rank("cuda")


def test_a_gpu_with_too_little_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of w (4, 3) a rank of two has two rows, and x (5, 4) is whole: 24 and 80 bytes."""
    program, total = linear(), [104]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=total[0]))
    assert input_bytes(program, 1) == 104
    require_memory(program, 1, torch.device("cuda", 0))
    total[0] = 103
    with pytest.raises(RunError, match=r"E0365.*rank 1 take(.|\n)*its GPU 0 has(.|\n)*more ranks"):
        require_memory(program, 1, torch.device("cuda", 0))
    require_memory(program, 1, torch.device("cpu"))


def test_threads_run_on_the_cpu_also_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    one_gpu(monkeypatch)
    program = linear()
    with pytest.raises(RunError, match=r"E0364.*ranks as threads run on the CPU(.|\n)*torchrun"):
        RankThreads(replace(program, manifest=replace(program.manifest, target="cuda")))


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(RunError, match=r'E0364.*target "abacus"(.|\n)*cpu or cuda'):
        device_of_rank("abacus")
