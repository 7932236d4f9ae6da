#!/usr/bin/env python3
"""Measures speed and memory; the figures in docs/ come from here.

    python tools/benchmark.py data                        # all of the data path
    python tools/benchmark.py data --only loader opening
    python tools/benchmark.py data --only decoding --videos a.mp4 b.avi
    python tools/benchmark.py data --only extraction --tokenizer dalle --device cuda
    python tools/benchmark.py models configs/benchmark/k400_*.yaml   # any configurations
    python tools/benchmark.py demo                        # five models on the demo's videos

What "data" compares is measured in turns, in one run; its files are written to a temporary folder
(set TMPDIR to choose the disk) and removed.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vimpac_ext.benchmarks.models_command import add_demo, add_models
from vimpac_ext.command_line import run_tool
from vimpac_ext.files import atomic_write


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subcommands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for add in (_add_data,):  # one line for each subcommand
        command = add(subcommands)
        command.add_argument("--output", type=Path, metavar="JSON", help="write the numbers, too")
    for add_command in (add_models, add_demo):  # these have a function `run`
        add_command(subcommands)
    arguments = parser.parse_args(argv)
    if "run" in arguments:
        return int(arguments.run(arguments))
    # Imported late, so that --help answers at once.
    from vimpac_ext.benchmarks.result import machine

    print(json.dumps(machine(), indent=2))
    results = []
    for measure in arguments.measurements(arguments):
        with tempfile.TemporaryDirectory(prefix="vimpac_benchmark_") as folder:
            results.append(measure(Path(folder)))
        print(f"\n{results[-1]}", flush=True)
    if arguments.output:
        content = {"machine": machine(), "results": [asdict(result) for result in results]}
        with atomic_write(arguments.output) as file:
            json.dump(content, file, indent=2)
    return 0


def _add_data(subcommands: Any) -> argparse.ArgumentParser:
    parts = ("loader", "opening", "decoding", "extraction")
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "data",
        help="token loader, opening of large stores, random clips of video files, extraction",
    )
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="default: all")
    parser.add_argument("--seconds", type=float, default=10.0, help="a number (default: 10)")
    parser.add_argument("--num_videos", type=int, default=1_200_000, help="opening: %(default)s")
    parser.add_argument("--videos", nargs="+", type=Path, metavar="FILE", help="decoding: yours")
    parser.add_argument("--clips", type=int, default=20, help="decoding, a video: %(default)s")
    parser.add_argument("--fps", type=float, default=2.0, help="extraction: %(default)s")
    parser.add_argument("--views", default="center", help="extraction: %(default)s")
    parser.add_argument("--tokenizer", choices=("none", "vqvae", "dalle"), default="vqvae")
    parser.add_argument("--device", default="cpu", help="extraction: %(default)s")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.set_defaults(measurements=_data_measurements)
    return parser


def _data_measurements(arguments: argparse.Namespace) -> list[Callable[[Path], Any]]:
    from vimpac_ext.benchmarks.decoding import measure_random_clips
    from vimpac_ext.benchmarks.extraction_speed import measure_extraction
    from vimpac_ext.benchmarks.store_opening import measure_store_opening
    from vimpac_ext.benchmarks.token_loader import measure_token_loader

    names = ("fps", "views", "tokenizer", "device", "precision", "seconds")
    options = {name: getattr(arguments, name) for name in names}
    videos = {str(path): path for path in arguments.videos or ()}
    measurements: dict[str, Callable[[Path], Any]] = {
        "loader": lambda folder: measure_token_loader(folder, seconds=arguments.seconds),
        "opening": lambda folder: measure_store_opening(folder, arguments.num_videos),
        "decoding": lambda folder: measure_random_clips(folder, videos, arguments.clips),
        "extraction": lambda folder: measure_extraction(folder, **options),
    }
    return [measurements[part] for part in arguments.only]


if __name__ == "__main__":
    run_tool(main)
