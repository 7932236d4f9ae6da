"""How many floating-point operations a device can do in a second: what utilisation is a share of.

For GPUs that are in the table it is the vendor's number for dense matrix products (no sparsity,
float32 accumulation); for all others, and for CPUs, what matrix products reach when they are tried.
"""

import re
import time
from functools import lru_cache
from typing import NamedTuple

import torch

# Tera-operations a second by the words of the device's name, more specific names first:
# bf16 (fp16 on devices without bf16), tf32, fp32. From the vendor's data sheets.
_TERA = 1e12
_TABLE: tuple[tuple[tuple[str, ...], dict[str, float]], ...] = (
    (("H100", "PCIe"), {"bf16": 756, "fp16": 756, "tf32": 378, "fp32": 51.2}),
    (("H100", "NVL"), {"bf16": 835, "fp16": 835, "tf32": 417.5, "fp32": 60}),
    (("H100",), {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9}),
    (("H200", "NVL"), {"bf16": 835, "fp16": 835, "tf32": 417.5, "fp32": 60}),
    (("H200",), {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9}),
    (("A100",), {"bf16": 312, "fp16": 312, "tf32": 156, "fp32": 19.5}),
    (("A30",), {"bf16": 165, "fp16": 165, "tf32": 82, "fp32": 10.3}),
    (("A40",), {"bf16": 149.7, "fp16": 149.7, "tf32": 74.8, "fp32": 37.4}),
    (("A10",), {"bf16": 125, "fp16": 125, "tf32": 62.5, "fp32": 31.2}),
    (("L40S",), {"bf16": 362, "fp16": 362, "tf32": 183, "fp32": 91.6}),
    (("L4",), {"bf16": 121, "fp16": 121, "tf32": 60, "fp32": 30.3}),
    (("A6000",), {"bf16": 154.8, "fp16": 154.8, "tf32": 77.4, "fp32": 38.7}),
    (("RTX", "4090"), {"bf16": 165.2, "fp16": 165.2, "tf32": 82.6, "fp32": 82.6}),
    (("RTX", "3090"), {"bf16": 71, "fp16": 71, "tf32": 35.6, "fp32": 35.6}),
    (("V100", "PCIE"), {"fp16": 112, "fp32": 14}),
    (("V100",), {"fp16": 125, "fp32": 15.7}),
    (("T4",), {"fp16": 65, "fp32": 8.1}),
)
# A name with one of these is of another chip than the rest of it says, or of a part of one.
_OTHER_CHIPS = ("MIG", "Ti", "D", "Laptop", "Mobile")

MEASURING_SECONDS = 0.25
_MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}


class Peak(NamedTuple):
    """Floating-point operations a second, and where the number comes from."""

    flops_per_second: float
    source: str


def peak_of(device: torch.device, precision: str, tf32: bool = False) -> Peak:
    """The most that matrix products of a precision can reach on a device.

    Args:
        device: CPU or GPU.
        precision: "fp32", "bf16" or "fp16".
        tf32: whether float32 products may be computed in TF32.

    Returns:
        From the table, or measured once in a process, which takes about `MEASURING_SECONDS`.
    """
    kind = "tf32" if precision == "fp32" and tf32 and device.type == "cuda" else precision
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        listed = listed_peak(name, kind)
        if listed is not None:
            return Peak(listed, f"data sheet of {name}, {kind}")
    return Peak(_measured(device, kind, torch.get_num_threads()), f"measured products of {kind}")


def listed_peak(name: str, kind: str) -> float | None:
    """Operations a second of a GPU by its name, or None if it is not in the table.

    Args:
        name: as CUDA gives it, such as "NVIDIA A100-SXM4-40GB".
        kind: "fp32", "tf32", "bf16" or "fp16".
    """
    words = set(re.findall(r"\w+", name))
    if words & set(_OTHER_CHIPS):
        return None
    for needed, rates in _TABLE:
        if words.issuperset(needed):
            return rates[kind] * _TERA if kind in rates else None
    return None


@lru_cache
def _measured(device: torch.device, kind: str, num_threads: int) -> float:
    """The fastest of some square matrix products; ``num_threads`` tells cached results apart."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(kind, torch.float32)
    size = _MATRIX_SIZE.get(device.type, 1024)
    left, right, result = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(3))
    until = time.perf_counter() + MEASURING_SECONDS
    best = float("inf")
    with torch.no_grad():
        torch.mm(left, right, out=result)
        while best == float("inf") or time.perf_counter() < until:
            _wait_for(device)
            started = time.perf_counter()
            torch.mm(left, right, out=result)
            _wait_for(device)
            best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
