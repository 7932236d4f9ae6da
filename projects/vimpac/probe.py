#!/usr/bin/env python3
"""Accuracy of linear classifiers on the frozen features of a pre-trained model, with few labels.

    python projects/vimpac/probe.py --cfg configs/vimpac/demo/finetune.yaml \
        TEST.CHECKPOINT_FILE_PATH output/demo/pretrain OUTPUT_DIR output/demo/probe
    python projects/vimpac/probe.py --cfg configs/vimpac/demo/finetune.yaml \
        TEST.CHECKPOINT_FILE_PATH none OUTPUT_DIR output/demo/probe_random     # random weights

The configuration is that of a fine-tuning, whose tokens must have been extracted. 8 labelled
videos of each class are drawn, 20 times. Writes OUTPUT_DIR/probe.json with the mean accuracy.
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
        parser.error("--cfg takes one file here, e.g. --cfg configs/vimpac/demo/finetune.yaml")
    # Imported late, so that --help answers at once.
    from paper_tables.probing import NUM_CLIPS, evaluate_probe

    from vimpac_ext.engine import prepare

    start_logging()
    usual = ["TRAIN.ENABLE", "False", "TEST.NUM_ENSEMBLE_VIEWS", str(NUM_CLIPS)]
    result = evaluate_probe(prepare(files[0], [*usual, *overrides], arguments.plugin))
    print(
        f"top1 {result['top1']:.2f} +- {result['top1_std']:.2f}: {len(result['top1_of_draws'])} "
        f"draws of labelled videos, {result['test_videos']} test videos"
    )
    return 0


if __name__ == "__main__":
    run_tool(main)
