"""What a number was measured on: the machine and the code."""

import platform
import subprocess
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


def code_version(repository: Path) -> str:
    """The commit that is checked out, "-dirty" if files differ from it; empty if not known."""
    words = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
