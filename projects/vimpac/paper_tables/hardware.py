"""What a number was measured on."""

import platform
from pathlib import Path

import torch


def hardware(device: str = "") -> str:
    """The device in words: the GPU, or the processor with the threads that torch uses.

    Args:
        device: "cpu", "cuda" or empty for what the machine has.
    """
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' * (threads != 1)}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
