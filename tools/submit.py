#!/usr/bin/env python3
"""Queues training runs on a SLURM cluster, or starts them on this machine in the background.

python tools/submit.py --cluster slurm --nodes 2 --minutes 720 --cfg a.yaml NUM_GPUS 8
python tools/submit.py --cluster slurm --cfg a.yaml b.yaml --parameter slurm_partition=gpu
python tools/submit.py --cluster local --wait --cfg a.yaml NUM_GPUS 0 NUM_CPU_PROCESSES 2

Each configuration is one job, several form an array. A job that runs out of time or is preempted
saves, queues again and goes on; see docs/launch.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vimpac_ext.command_line import (
    EPILOG,
    add_config_arguments,
    configs_and_overrides,
    run_tool,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm")
    parser.add_argument("--nodes", type=int, default=1, help="machines of a job (default: 1)")
    parser.add_argument("--minutes", type=int, default=1440, help="time limit (default: 1440)")
    parser.add_argument("--cpus", type=int, default=8, help="CPU cores of a machine (default: 8)")
    parser.add_argument("--folder", default="output/jobs", help="for logs (default: output/jobs)")
    parser.add_argument(
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of submitit's executor, e.g. slurm_partition=gpu or mem_gb=64; may be repeated",
    )
    parser.add_argument("--wait", action="store_true", help="until all jobs have ended")
    arguments = parser.parse_args(argv)
    files, overrides = configs_and_overrides(arguments)
    if not files:
        parser.error("--cfg is required, e.g. --cfg configs/vimpac/demo/pretrain.yaml")
    if arguments.cluster == "local" and arguments.nodes > 1:
        parser.error("--cluster local has one machine")
    parameters = dict(item.partition("=")[::2] for item in arguments.parameter)
    numbers = {name: int(text) for name, text in parameters.items() if text.isdecimal()}
    # Imported late, so that --help answers at once.
    from vimpac_ext.engine.processes import RunRequest
    from vimpac_ext.engine.submit import submit

    jobs = submit(
        [RunRequest((file,), tuple(overrides), tuple(arguments.plugin)) for file in files],
        Path(arguments.folder),
        arguments.cluster,
        arguments.minutes,
        {
            "nodes": arguments.nodes,
            "cpus_per_task": arguments.cpus,
            "name": Path(files[0]).stem,
            **parameters,
            **numbers,
        },
    )
    for file, job in zip(files, jobs, strict=True):
        print(f"{file}: job {job.job_id}, log {job.paths.stdout}")
    if arguments.wait:
        for job in jobs:
            job.wait()
    return 1 if arguments.wait and any(job.exception() is not None for job in jobs) else 0


if __name__ == "__main__":
    run_tool(main)
