#!/usr/bin/env python3
"""Measures speed and memory; the figures in docs/ come from here.

    python tools/benchmark.py data                        # all of the data path
    python tools/benchmark.py data --only loader opening
    python tools/benchmark.py data --only decoding --videos a.mp4 b.avi
    python tools/benchmark.py data --only extraction --tokenizer dalle --device cuda
    python tools/benchmark.py train --cfg configs/vimpac/pretrain_small.yaml --precision fp32 bf16
    python tools/benchmark.py train --cfg A.yaml --compare B.yaml --output numbers.json
    python tools/benchmark.py attention --device cuda     # ways to attend along short rows
    python tools/benchmark.py models configs/benchmark/k400_*.yaml   # any configurations
    python tools/benchmark.py demo                        # five models on the demo's videos

What "data", "train" and "attention" compare is measured in turns, in one run. Files are written to
a temporary folder (set TMPDIR to choose the disk) and removed. As a table:
python -m vimpac_ext.benchmarks.table --help
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from vimpac_ext.benchmarks.arguments import add_attention, add_data, add_train
from vimpac_ext.benchmarks.models_command import add_demo, add_models
from vimpac_ext.command_line import run_tool
from vimpac_ext.files import atomic_write


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subcommands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for add in (add_data, add_train, add_attention):  # these have "measurements"
        add(subcommands).add_argument(
            "--output", type=Path, metavar="JSON", help="write the numbers, too"
        )
    for add_command in (add_models, add_demo):  # these have a function `run`
        add_command(subcommands)
    words = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv)
    if "run" in arguments:
        return int(arguments.run(arguments))
    # Imported late, so that --help answers at once.
    from vimpac_ext.benchmarks.result import machine

    used = machine()
    print(json.dumps(used, indent=2))
    results = []
    for measure in arguments.measurements(arguments):
        with tempfile.TemporaryDirectory(prefix="vimpac_benchmark_") as folder:
            for result in measure(Path(folder)):
                print(f"\n{result}", flush=True)
                results.append(asdict(result))
    if arguments.output:
        command = f"python tools/benchmark.py {shlex.join(words)}"
        content = {"command": command, "machine": used, "results": results}
        with atomic_write(arguments.output) as file:
            json.dump(content, file, indent=2)
    return 0


if __name__ == "__main__":
    run_tool(main)
