"""What a run ran on and with: a small file beside its configuration."""

import json
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

import vimpac_ext
from vimpac_ext.engine.distributed import world_size
from vimpac_ext.files import atomic_write

ENVIRONMENT_FILE = "environment.json"
_PACKAGES = ("torch", "torchvision", "numpy", "av", "lmdb", "timm", "pytorchvideo", "transformers")


def write_config(folder: Path, cfg: CfgNode, device: torch.device) -> None:
    """Writes ``config.yaml`` and, of this start, what it runs on; the main process's part.

    Args:
        folder: OUTPUT_DIR of a training, or of its test.
        cfg: configuration.
        device: of this process.
    """
    with atomic_write(folder / "config.yaml") as file:
        file.write(cfg.dump())
    content = {
        "command": shlex.join(sys.argv),
        "hardware": hardware(device),
        "processes": world_size(),
        "versions": versions(),
    }
    with atomic_write(folder / ENVIRONMENT_FILE) as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def hardware(device: torch.device) -> str:
    """A device in words: the GPU, or the processor with the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' * (threads != 1)}"


def processor() -> str:
    """Model of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Those of Python, this library and the packages that it may use, where they are installed."""
    found = {"python": platform.python_version(), "vimpac_ext": vimpac_ext.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
