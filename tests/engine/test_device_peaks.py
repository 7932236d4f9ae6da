import pytest
import torch

from vimpac_ext.engine import device_peaks
from vimpac_ext.engine.device_peaks import listed_peak, peak_of


@pytest.mark.parametrize(
    ("name", "kind", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA A100-SXM4-40GB", "tf32", 156),
        ("NVIDIA A100 80GB PCIe", "fp32", 19.5),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla T4", "fp32", 8.1),
        ("NVIDIA L4", "bf16", 121),
    ],
)
def test_gpus_are_known_by_their_names(name, kind, tera):
    assert listed_peak(name, kind) == tera * 1e12


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Tesla V100-SXM2-16GB", "bf16"),  # it has none
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16"),  # a seventh
        ("NVIDIA A10G", "bf16"),  # not the A10
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("Some Other Chip", "fp32"),
    ],
)
def test_what_is_not_in_the_table_is_not_guessed(name, kind):
    assert listed_peak(name, kind) is None


def test_a_cpu_is_measured_once(monkeypatch):
    """With a clock that ticks: the fastest product of 32 x 32 matrices counts."""
    ticks = iter([0.0, 1.0, 1.5, 1.6, 2.0, 2.3])  # until, (start, end, look), (start, end, ...
    monkeypatch.setattr(device_peaks.time, "perf_counter", lambda: next(ticks, 100.0))
    monkeypatch.setitem(device_peaks._MATRIX_SIZE, "cpu", 32)
    monkeypatch.setattr(device_peaks, "MEASURING_SECONDS", 1.7)
    device_peaks._measured.cache_clear()
    cpu = torch.device("cpu")
    peak = peak_of(cpu, "fp32", tf32=True)
    assert peak.flops_per_second == pytest.approx(2 * 32**3 / 0.3)
    assert peak_of(cpu, "fp32") == peak
    assert peak.source == "measured products of fp32"
    device_peaks._measured.cache_clear()
