#!/usr/bin/env python3
"""Mask accuracy and losses of a pre-trained model on held-out videos.

    python projects/vimpac/heldout.py --cfg configs/vimpac/demo/pretrain.yaml \
        TEST.ENABLE True TEST.NUM_SPATIAL_CROPS 1 TEST.TOKEN_STORE output/demo/tokens/validation \
        TEST.DATASET.NAME SomethingSomethingV2 TEST.DATASET.split validation \
        TEST.CHECKPOINT_FILE_PATH output/demo/pretrain OUTPUT_DIR output/demo/heldout

The configuration is that of the pre-training, with the videos to use as TEST.DATASET. Writes
OUTPUT_DIR/heldout.json.
"""

import argparse
from collections.abc import Sequence

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
    arguments = parser.parse_args(argv)
    files, overrides = configs_and_overrides(arguments)
    if len(files) != 1:
        parser.error("--cfg takes one file here, e.g. --cfg configs/vimpac/demo/pretrain.yaml")
    # Imported late, so that --help answers at once.
    from paper_tables.heldout import evaluate_heldout

    from vimpac_ext.config import last_stage
    from vimpac_ext.engine import prepare

    start_logging()
    result = evaluate_heldout(last_stage(prepare(files[0], overrides, arguments.plugin)))
    print(", ".join(f"{name} {value:.4g}" for name, value in result.items()))
    return 0


if __name__ == "__main__":
    run_tool(main)
