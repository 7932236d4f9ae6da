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

OPTIONS = {  # and the arguments of `draw_figure`
    **{"video": "videos", "label": "labels", "seed": "seed", "ratio": "ratios"},
    **{"masks": "num_masks", "layer": "layer", "run": "runs", "scalar": "scalars"},
}
FIGURES = {  # and the options that each takes
    "reconstruction": ("video", "seed"),
    "masks": ("video", "seed"),
    "frames": ("video", "label"),
    "copy-paste": ("video", "seed", "ratio", "masks"),
    "attention": ("video", "layer"),
    "curves": ("run", "scalar"),
    "confusion": ("run",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    add = parser.add_argument
    add("--figure", choices=FIGURES, default="reconstruction", help="default: %(default)s")
    add("--output", type=Path, required=True, metavar="FILE", help="file to write, .png .gif .mp4")
    add("--video", nargs="+", metavar="FILE", help="default: of TRAIN.DATASET")
    add("--label", nargs="+", metavar="TEXT", help="frames: one for each --video")
    add("--seed", type=int, help="of the masks (default: 0)")
    add("--ratio", type=float, nargs="+", help="copy-paste: shares to hide (default: 0.15 0.45)")
    add("--masks", type=int, help="copy-paste: masks that its numbers are means over (default: 20)")
    add("--layer", type=int, help="attention: counted from 1 (default: the last)")
    add("--run", type=Path, nargs="+", metavar="DIR", help="OUTPUT_DIRs of runs")
    add("--scalar", nargs="+", metavar="NAME", help="curves: e.g. loss (default: all)")
    arguments = parser.parse_args(argv)
    files, overrides = configs_and_overrides(arguments)
    figure, runs = arguments.figure, arguments.run
    of_runs = "run" in FIGURES[figure]
    suffixes = (".png",) if of_runs else (".png", ".gif", ".mp4")
    if arguments.output.suffix.lower() not in suffixes:
        parser.error(f"--output must end in {' or '.join(suffixes)}, found {arguments.output}")
    given: dict[str, Any] = {}
    for option, argument in OPTIONS.items():
        value = getattr(arguments, option)
        if value is not None and option not in FIGURES[figure]:
            takes = ", ".join(f"--{name}" for name in FIGURES[figure])
            parser.error(f"--figure {figure} takes no --{option}, only {takes}")
        given |= {} if value is None else {argument: value}
    if of_runs and (files or not runs or (figure == "confusion" and len(runs) > 1)):
        several = " [DIR ...]" * (figure == "curves")
        parser.error(f"--figure {figure} needs --run DIR{several} and no --cfg")
    without_config = of_runs or (figure == "frames" and arguments.video)
    if len(files) != 1 and not (without_config and not files):
        parser.error("--cfg takes one file here, e.g. --cfg configs/vimpac/demo/pretrain.yaml")
    # Imported late, so that --help answers at once.
    from vimpac_ext.config import last_stage
    from vimpac_ext.engine import prepare
    from vimpac_ext.engine.figures.by_name import draw_figure

    start_logging()
    loaded = last_stage(prepare(files[0], overrides, arguments.plugin)) if files else None
    draw_figure(figure, arguments.output, loaded, **given)
    return 0


if __name__ == "__main__":
    run_tool(main)
