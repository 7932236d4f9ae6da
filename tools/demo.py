#!/usr/bin/env python3
"""The whole pipeline on made videos: data, tokens, pre-training, fine-tuning, multi-view test.

    python tools/demo.py                     # one seed, about three minutes on two CPU cores
    python tools/demo.py --seeds 0 1 2       # mean and spread

Prints pre-trained against from-scratch accuracy, each at a learning rate chosen for it, with
a single-frame control, and writes OUTPUT/result.json. Every stage continues where it was stopped.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from vimpac_ext.command_line import run_tool, start_logging
from vimpac_ext.data.synthetic import make_demo_data
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.environment import processor
from vimpac_ext.engine.extraction import extract_stores
from vimpac_ext.files import atomic_write

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "vimpac" / "demo"
RESULTS = {  # config -> row of the table
    "finetune": "pre-trained",
    "scratch": "from scratch",
    "single_frame": "single frame (pre-trained)",
}
PACKAGES = ("vimpac_ext", "torch", "torchvision", "av", "lmdb", "numpy", "timm", "pytorchvideo")


def main(argv: Sequence[str] | None = None) -> None:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="%(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    arguments = parser.parse_args(argv)
    start_logging(arguments.output)
    runs = [_run_seed(arguments.output / f"seed_{seed}", seed) for seed in arguments.seeds]
    summary = {
        "runs": runs,
        "hardware": f"{torch.get_num_threads()} threads, {processor()}",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }
    with atomic_write(arguments.output / "result.json") as file:
        json.dump(summary, file, indent=2)
    print(_table(runs))
    print(f"wrote {arguments.output / 'result.json'}")


def _run_seed(output: Path, seed: int) -> dict[str, Any]:
    clock = _StageClock(output / "seconds.json")
    clock.time("make videos", lambda: make_demo_data(output / "data", seed=seed))
    configs = {
        name: prepare(CONFIGS / f"{name}.yaml", _overrides(name, output, seed))
        for name in ("pretrain", *RESULTS)
    }
    for name in ("pretrain", "finetune"):  # scratch and single_frame read finetune's tokens
        clock.time(f"tokens for {name}", partial(extract_stores, configs[name]))
    results = {name: clock.time(name, partial(run, loaded)) for name, loaded in configs.items()}
    return {
        "seed": seed,
        "results": {name: results[name] for name in RESULTS},
        "seconds": {**clock.seconds, "total": sum(clock.seconds.values())},
    }


def _overrides(name: str, output: Path, seed: int) -> list[str]:
    """The demo's configs with this seed, below this folder instead of output/demo."""
    tokens = output / "tokens"
    values: dict[str, Any] = {
        "OUTPUT_DIR": output / name,
        "DATA.PATH_TO_DATA_DIR": output / "data",
        "RNG_SEED": seed,
        "TRAIN.TOKEN_STORE": tokens / ("unlabelled" if name == "pretrain" else "train"),
    }
    if name != "pretrain":
        values["TEST.TOKEN_STORE"] = tokens / "validation"
    if name in ("finetune", "single_frame"):
        values["TRAIN.CHECKPOINT_FILE_PATH"] = output / "pretrain"
    return [str(word) for pair in values.items() for word in pair]


class _StageClock:
    """Seconds of each stage, added up over interrupted runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

    def time(self, stage: str, work: Callable[[], Any]) -> Any:
        print(f"--- {stage}", flush=True)
        started = time.perf_counter()
        try:
            return work()
        finally:
            spent = self.seconds.get(stage, 0.0) + time.perf_counter() - started
            self.seconds[stage] = round(spent, 1)
            with atomic_write(self.path) as file:
                json.dump(self.seconds, file)


def _table(runs: list[dict[str, Any]]) -> str:
    lines = [f"{'':28}{'top-1 %':>16}{'top-5 %':>16}"]
    for name, title in RESULTS.items():
        cells = [_mean([run["results"][name][key] for run in runs]) for key in ("top1", "top5")]
        lines.append(f"{title:28}" + "".join(f"{cell:>16}" for cell in cells))
    protocol = runs[0]["results"]["finetune"]["protocol"]
    lines.append(
        f"{protocol['temporal_views']} x {protocol['spatial_crops']} views, "
        f"{protocol['expected_videos']} test videos, seeds {[run['seed'] for run in runs]}, "
        f"{_mean([run['seconds']['total'] for run in runs])} s a seed"
    )
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    run_tool(main)
