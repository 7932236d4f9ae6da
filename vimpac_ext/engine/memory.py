"""How much memory a process has needed so far."""

import resource
import sys
from pathlib import Path

import torch

GIBIBYTE = 2**30


def peak_resident_bytes() -> int:
    """Largest resident memory of this process since it started its program."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not getrusage: there, a program also has the peak of the process that started it.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_columns() -> dict[str, str]:
    """The peaks of this process for a log line: "gpu_mem" and "cpu_mem", such as "1.25G"."""
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    return {
        "gpu_mem": f"{on_gpu / GIBIBYTE:.2f}G",
        "cpu_mem": f"{peak_resident_bytes() / GIBIBYTE:.2f}G",
    }
