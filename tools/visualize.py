#!/usr/bin/env python3
"""Draws the paper's figures from clips, and pictures of runs; .png, for clips also .gif and .mp4.

    python tools/visualize.py --cfg configs/vimpac/demo/pretrain.yaml --output picture.png
    python tools/visualize.py --figure masks --cfg a.yaml --video one.mp4 two.mp4 --output masks.gif
    python tools/visualize.py --figure curves --run output/a output/b --output curves.png

--figure        needs            draws
reconstruction  --cfg            original, tokens, mask, the model's prediction (Figure 8; default)
masks           --cfg            what each registered masker hides (Figure 2)
frames          --cfg or --video equally spaced frames under their labels (Figures 3 and 6)
copy-paste      --cfg            hidden tokens copied from their neighbours (Figures 4 and 7)
attention       --cfg            where CLS of a VimpacTransformer looks, over space and time
curves          --run            scalars of runs over each other
confusion       --run            confusion matrix of a tested run

Models are the newest checkpoint of the configuration's OUTPUT_DIR, or TEST.CHECKPOINT_FILE_PATH.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vimpac_ext.command_line import (
    EPILOG,
    add_config_arguments,
    configs_and_overrides,
    run_tool,
    start_logging,
)

RUN_FIGURES = ("curves", "confusion")
FIGURES = ("reconstruction", "masks", "frames", "copy-paste", "attention", *RUN_FIGURES)


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    add = parser.add_argument
    add("--figure", choices=FIGURES, default=FIGURES[0], help="default: %(default)s")
    add("--output", type=Path, required=True, metavar="FILE", help="file to write, .png .gif .mp4")
    add("--video", nargs="+", default=[], metavar="FILE", help="default: of TRAIN.DATASET")
    add("--label", nargs="+", default=[], metavar="TEXT", help="frames: one for each --video")
    add("--seed", type=int, default=0, help="of the masks (default: %(default)s)")
    add("--ratio", type=float, nargs="+", default=[0.15, 0.45], help="copy-paste: shares to hide")
    add("--masks", type=int, default=20, help="copy-paste: masks that its numbers are means over")
    add("--layer", type=int, default=0, help="attention: counted from 1 (default: the last)")
    add("--run", type=Path, nargs="+", default=[], metavar="DIR", help="OUTPUT_DIRs of runs")
    add(
        "--scalar",
        nargs="+",
        default=[],
        metavar="NAME",
        help="curves: e.g. loss (default: all)",
    )
    arguments = parser.parse_args(argv)
    files, overrides = configs_and_overrides(arguments)
    figure, runs = arguments.figure, arguments.run
    suffixes = (".png",) if figure in RUN_FIGURES else (".png", ".gif", ".mp4")
    if arguments.output.suffix.lower() not in suffixes:
        parser.error(f"--output must end in {' or '.join(suffixes)}, found {arguments.output}")
    if figure in RUN_FIGURES and (not runs or (figure == "confusion" and len(runs) > 1)):
        parser.error(f"--figure {figure} needs --run DIR" + " [DIR ...]" * (figure == "curves"))
    without_config = figure in RUN_FIGURES or (figure == "frames" and arguments.video)
    if len(files) != 1 and not (without_config and not files):
        parser.error("--cfg takes one file here, e.g. --cfg configs/vimpac/demo/pretrain.yaml")
    # Imported late, so that --help answers at once.
    from vimpac_ext.config import last_stage
    from vimpac_ext.engine import figures, prepare
    from vimpac_ext.engine.visualize import visualize

    start_logging()
    loaded: Any = last_stage(prepare(files[0], overrides, arguments.plugin)) if files else None
    picture, videos, seed = arguments.output, arguments.video, arguments.seed
    draw = {
        "reconstruction": lambda: visualize(loaded, picture, videos, seed),
        "masks": lambda: figures.draw_masks(loaded, picture, videos, seed),
        "frames": lambda: figures.draw_frames(loaded, picture, videos, arguments.label),
        "copy-paste": lambda: figures.draw_copies(
            loaded, picture, videos, seed, arguments.ratio, arguments.masks
        ),
        "attention": lambda: figures.draw_attention(loaded, picture, videos, arguments.layer),
        "curves": lambda: figures.draw_run_curves(runs, picture, arguments.scalar),
        "confusion": lambda: figures.draw_run_confusion(runs[0], picture),
    }
    draw[figure]()
    return 0


if __name__ == "__main__":
    run_tool(main)
