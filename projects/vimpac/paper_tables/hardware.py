"""What a number was measured on: the machine and the code."""

import subprocess
from pathlib import Path

import torch

from vimpac_ext.engine.environment import processor


def hardware(device: str = "") -> str:
    """The device in words: the GPU, or the processor with the threads that torch uses.

    Args:
        device: "cpu", "cuda" or empty for what the machine has.
    """
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' * (threads != 1)}"


def code_version(repository: Path) -> str:
    """The commit that is checked out, "-dirty" if files differ from it; empty if not known."""
    words = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
