#!/usr/bin/env python3
"""Trains and tests whatever a configuration describes.

python tools/run_net.py --cfg configs/vimpac/ssv2_large.yaml
python tools/run_net.py --cfg a.yaml b.yaml            # one after the other
python tools/run_net.py --cfg a.yaml TRAIN.BATCH_SIZE 8
python tools/run_net.py --list                         # what is registered
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vimpac_ext.catalogue import catalogue
from vimpac_ext.command_line import (
    EPILOG,
    add_config_arguments,
    configs_and_overrides,
    run_tool,
    start_logging,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument("--list", action="store_true", help="list registered components and exit")
    arguments = parser.parse_args(argv)
    files, overrides = configs_and_overrides(arguments)
    if arguments.list:
        print(catalogue(arguments.plugin))
        return 0
    if not files:
        parser.error("--cfg is required, e.g. --cfg configs/vimpac/demo/pretrain.yaml")
    # Imported late, so that --help and --list answer at once.
    from vimpac_ext.engine import prepare, run

    prepared = [prepare(file, overrides, arguments.plugin) for file in files]
    for loaded in prepared:
        start_logging(Path(loaded.cfg.OUTPUT_DIR))
        run(loaded)
    return 0


if __name__ == "__main__":
    run_tool(main)
