#!/usr/bin/env python3
"""Trains and tests whatever a configuration describes.

python tools/run_net.py --cfg configs/vimpac/ssv2_large.yaml
python tools/run_net.py --cfg a.yaml b.yaml            # one after the other
python tools/run_net.py --cfg a.yaml TRAIN.BATCH_SIZE 8
python tools/run_net.py --list                         # what is registered
torchrun --nproc_per_node 2 tools/run_net.py --cfg a.yaml

docs/launch.md has a command for each way to use several processes and machines.
"""

import argparse
from collections.abc import Sequence

from vimpac_ext.catalogue import catalogue
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
    parser.add_argument("--list", action="store_true", help="list registered components and exit")
    parser.add_argument("--num_shards", type=int, default=1, help="machines with this command")
    parser.add_argument("--shard_id", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument(
        "--init_method",
        default="",
        metavar="tcp://HOST:PORT",
        help="where the processes meet: a free port of machine 0",
    )
    arguments = parser.parse_args(argv)
    files, overrides = configs_and_overrides(arguments)
    if arguments.list:
        print(catalogue(arguments.plugin))
        return 0
    if not files:
        parser.error("--cfg is required, e.g. --cfg configs/vimpac/demo/pretrain.yaml")
    # Imported late, so that --help and --list answer at once.
    from vimpac_ext.engine import RunRequest, Shard, launch

    shard = Shard(arguments.shard_id, arguments.num_shards, arguments.init_method)
    return launch(RunRequest(tuple(files), tuple(overrides), tuple(arguments.plugin)), shard)


if __name__ == "__main__":
    run_tool(main)
