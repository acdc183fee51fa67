"""Times of kernels: bounds by what the GPU can do at all, and the steps that waves of tiles make."""

import numpy as np
import pytest
from stretto.costs.kernels.attention import attention_seconds, decode_seconds
from stretto.costs.kernels.collective import node_collective_seconds
from stretto.costs.kernels.experts import experts_seconds
from stretto.costs.kernels.gpu import BYTES, gpu, names
from stretto.costs.kernels.matmul import matmul_seconds
from stretto.costs.kernels.memory_bound import moved_seconds
from stretto.diagnostics import StrettoError

SIZES = np.array([16, 100, 512, 1000, 4096, 8192])


@pytest.mark.parametrize("name", names())
def test_no_product_is_faster_than_the_peak_or_the_memory(name: str) -> None:
    device = gpu(name)
    m, n, k = (each.ravel() for each in np.meshgrid(SIZES, SIZES, SIZES))
    for dtype, peak in device.peaks.items():
        seconds = matmul_seconds(m, n, k, dtype, device)
        nbytes = BYTES[dtype] * (m * k + n * k) + max(BYTES[dtype], 2) * m * n
        assert (seconds >= 2 * m * n * k / peak).all()
        assert (seconds >= nbytes / device.memory_rate).all()


def test_a_large_product_reaches_most_of_the_sustained_rate() -> None:
    device = gpu("H100-SXM-80GB")
    seconds = float(matmul_seconds(8192, 8192, 8192, "bf16", device))
    assert 0.65 < 2 * 8192**3 / seconds / device.peak("bf16") < device.matmuls["bf16"].math


def test_one_tile_more_than_a_wave_costs_most_of_another() -> None:
    """Wave quantization, NVIDIA's "Matrix Multiplication Background User's Guide", section 4."""
    device = gpu("A100-SXM-80GB")
    full, more = (float(matmul_seconds(rows, 128 * 12, 4096, "bf16", device)) for rows in (9 * 256, 9 * 256 + 1))
    assert more > 1.04 * full  # 108 tiles of (256, 128) fill 108 processors once


def test_a_product_of_few_tiles_is_split_along_its_inner_dim() -> None:
    device = gpu("H100-SXM-80GB")
    one_tile_long = 128 * 128 * 65536 * 2 / (device.peak("bf16") / device.processors)
    assert float(matmul_seconds(128, 128, 65536, "bf16", device)) < one_tile_long / 4


def test_causal_attention_takes_half_the_scores() -> None:
    device = gpu("H100-SXM-80GB")
    whole, half = (
        float(attention_seconds(1, 16384, 16384, 32, 8, 128, causal, "bf16", device)) for causal in (False, True)
    )
    assert 0.5 <= half / whole < 0.56


def test_decoding_reads_keys_and_values_once() -> None:
    device = gpu("H100-SXM-80GB")
    seconds = float(decode_seconds(64, 8192, 32, 8, 128, "bf16", device))
    cache = 2 * 64 * 8192 * 8 * 128 * 2
    assert 1 < seconds / (cache / device.memory_rate) < 1.3


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
def test_no_collective_is_faster_than_the_link(kind: str) -> None:
    device = gpu("A100-SXM-80GB")
    for ranks in (2, 4, 8):
        sent = (2 if kind == "all_reduce" else 1) * 1e9 * (ranks - 1) / ranks
        assert float(node_collective_seconds(kind, 1e9, ranks, device)) >= sent / device.link_rate
    assert float(node_collective_seconds(kind, 1e9, 1, device)) == 0


def test_experts_read_the_weights_of_those_that_have_rows() -> None:
    device = gpu("H100-SXM-80GB")
    one, all_ = (float(experts_seconds(t, 4096, 2048, 2, 64, "bf16", device)) for t in (1, 256))
    weights = 64 * 3 * 4096 * 2048 * 2
    assert one < weights / device.memory_rate / 4 < weights / device.memory_rate <= all_


def test_moved_bytes_go_at_the_memorys_rate() -> None:
    device = gpu("H200-SXM-141GB")
    assert float(moved_seconds(1e9, device)) >= 1e9 / device.memory_rate


def test_an_unknown_gpu_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(StrettoError, match=r'E0802.*"H100-SXM-8OGB" is unknown') as error:
        gpu("H100-SXM-8OGB")
    assert 'did you mean "H100-SXM-80GB"?' in error.value.help


def test_a_format_without_a_peak_is_refused() -> None:
    with pytest.raises(StrettoError, match=r'E0801.*"A100-SXM-80GB" has no peak for fp8'):
        gpu("A100-SXM-80GB").peak("fp8")
