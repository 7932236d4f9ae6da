#!/usr/bin/env python3
"""Converts checkpoints of the VIMPAC authors' code to this library's, and back.

    python tools/convert_checkpoint.py small.zip small.pyth
    python tools/convert_checkpoint.py snap/pretrain/small/last small.pyth
    python tools/convert_checkpoint.py output/vimpac/ucf101_small snap/mine/last --to original

SRC is a released zip, a snapshot folder or a classifier.pt, pre-trained or fine-tuned; with
--to original it is a checkpoint of this library or the folder of a run. The architecture is read
from the tensors, and the configuration is written beside DST. Nothing in a file is executed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vimpac_ext.command_line import run_tool


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument(
        "target", type=Path, metavar="DST", help="file to write, or folder with --to original"
    )
    parser.add_argument("--to", choices=("ours", "original"), default="ours")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument(
        "--no-optimizer", action="store_true", help="leave out the optimizer's moments"
    )
    unusual = parser.add_argument_group("what neither tensors nor args.pickle may tell")
    unusual.add_argument("--grid", type=int, nargs=3, metavar=("T", "H", "W"), help="in tokens")
    unusual.add_argument("--layout", help="attended axes, e.g. T,H|W")
    unusual.add_argument("--num-heads", type=int, help="if not one per 64 channels")
    arguments = parser.parse_args(argv)
    # Imported late, so that --help answers at once.
    from vimpac_ext.engine.conversion import convert_to_original, convert_to_ours

    with_optimizer = not arguments.no_optimizer
    if arguments.to == "original":
        report = convert_to_original(
            arguments.source, arguments.target, arguments.overwrite, with_optimizer
        )
    else:
        report = convert_to_ours(
            arguments.source,
            arguments.target,
            arguments.overwrite,
            with_optimizer,
            tuple(arguments.grid) if arguments.grid else None,
            arguments.layout,
            arguments.num_heads,
        )
    print(report)
    return 0


if __name__ == "__main__":
    run_tool(main)
