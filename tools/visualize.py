#!/usr/bin/env python3
"""Draws what a pre-trained model fills in where tokens are hidden (paper, Figure 8).

    python tools/visualize.py --cfg configs/vimpac/demo/pretrain.yaml --output picture.png
    python tools/visualize.py --cfg a.yaml --video one.mp4 two.mp4 --output picture.png --seed 1
    python tools/visualize.py --cfg a.yaml --output picture.png MASKER.num_blocks 3

Takes the newest checkpoint of the configuration's OUTPUT_DIR, or TEST.CHECKPOINT_FILE_PATH.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

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
    parser.add_argument(
        "--video",
        nargs="+",
        default=[],
        metavar="FILE",
        help="videos, a block each (default: the first video of TRAIN.DATASET)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="PNG", help="file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the masks (default: %(default)s)")
    arguments = parser.parse_args(argv)
    files, overrides = configs_and_overrides(arguments)
    if len(files) != 1:
        parser.error("--cfg takes one file here, e.g. --cfg configs/vimpac/demo/pretrain.yaml")
    if arguments.output.suffix.lower() != ".png":
        parser.error(f"--output must be a .png file, found {arguments.output}")
    # Imported late, so that --help answers at once.
    from vimpac_ext.engine import prepare
    from vimpac_ext.engine.visualize import visualize

    start_logging()
    loaded = prepare(files[0], overrides, arguments.plugin)
    visualize(loaded, arguments.output, arguments.video, arguments.seed)
    return 0


if __name__ == "__main__":
    run_tool(main)
