#!/usr/bin/env python3
"""Writes scores and features of a model for every test video, with ids and labels.

    python tools/export.py --cfg configs/vimpac/demo/finetune.yaml --output demo.npz
    python tools/export.py --cfg a.yaml TEST.BATCH_SIZE 8 --output a.parquet --what features

scores      class probabilities of the multi-view test, (videos, classes)
features    the backbone's "cls", averaged over the views, (videos, width)

The videos are those of TEST.DATASET, the weights TEST.CHECKPOINT_FILE_PATH or the newest
checkpoint in OUTPUT_DIR. For features alone it may be that of a pre-training. The file also has
video ids, labels, class names and the protocol with its id. .parquet needs vimpac_ext[parquet].

Exit codes: 0 all done, 1 error, 3 done but some videos could not be decoded (their rows are NaN;
with DATA.ON_BAD_VIDEO error, the default, the first one stops the export).
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

SOME_VIDEOS_FAILED = 3
WHAT = ("scores", "features")


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help=".npz or .parquet"
    )
    parser.add_argument("--what", nargs="+", default=WHAT, choices=WHAT, help="default: both")
    arguments = parser.parse_args(argv)
    files, overrides = configs_and_overrides(arguments)
    if len(files) != 1:
        parser.error("--cfg takes one file here, e.g. --cfg configs/vimpac/demo/finetune.yaml")
    # Imported late, so that --help answers at once.
    from vimpac_ext.config import last_stage
    from vimpac_ext.engine import prepare
    from vimpac_ext.engine.export import export

    start_logging()
    words = ["TRAIN.ENABLE", "False", *overrides]
    loaded = last_stage(prepare(files[0], words, arguments.plugin))
    summary = export(loaded, arguments.output, arguments.what)
    return 0 if summary.table.decoded.all() else SOME_VIDEOS_FAILED


if __name__ == "__main__":
    run_tool(main)
