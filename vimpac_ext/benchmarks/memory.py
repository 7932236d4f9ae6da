"""Peak memory of what a process does next."""

import contextlib
import resource
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak memory above what was in use at the beginning.

    On a GPU it is what torch has allocated there; on a CPU the resident memory of the process, so
    measure in a fresh one.

    Args:
        device: whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._first = 0.0 if device.type == "cuda" else _resident_mb("VmRSS")

    def reset(self) -> None:
        """Forgets the peak so far (on a CPU: where the system can)."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with contextlib.suppress(OSError):  # not Linux, or not allowed
            _CLEAR.write_text("5")

    def peak_mb(self) -> float:
        """Megabytes (10^6 bytes) at the peak since `reset`."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        return max(_resident_mb("VmHWM") - self._first, 0.0)


def _resident_mb(field: str) -> float:
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
