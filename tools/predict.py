#!/usr/bin/env python3
"""Classes of video files by a trained model: the best few, their probabilities, and the time.

    python tools/predict.py --cfg configs/vimpac/demo/finetune.yaml video.mp4
    python tools/predict.py --cfg a.yaml --checkpoint a.pyth videos/ more.avi --json result.json
    python tools/predict.py --cfg a.yaml video.mp4 --draw drawn --opts NUM_GPUS 0

Takes the configuration of the training. Views and averaging are those of its test. A model that
reads tokens gets them from TOKENIZER; no token store is needed. Folders are searched for videos.
--draw writes copies with the classes on every frame (MP4, without sound).

A video that cannot be decoded is reported and the others go on; the exit code is then 1.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vimpac_ext.command_line import run_tool, start_logging


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cfg", required=True, metavar="YAML", help="configuration of the model")
    parser.add_argument("videos", nargs="+", help="files, and folders of videos")
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="or a run's folder; default: the newest in the config's OUTPUT_DIR; "
        "none: weights that components bring",
    )
    parser.add_argument("--top", type=int, default=5, metavar="K", help="default: %(default)s")
    parser.add_argument(
        "--class_names", metavar="FILE", help="a name a line; default: those of TEST.DATASET"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, too")
    parser.add_argument("--draw", type=Path, metavar="DIR", help="write videos with the classes")
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE")
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="overrides; after all other arguments",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    arguments = _parser().parse_args(argv)
    # Imported late, so that --help answers at once.
    from tqdm import tqdm

    from vimpac_ext.config import last_stage
    from vimpac_ext.engine import prepare
    from vimpac_ext.engine.prediction import Predictor
    from vimpac_ext.engine.prediction_files import predict_files, read_class_names, video_records

    start_logging()
    overrides = ["TRAIN.ENABLE", "False", *arguments.opts]
    if arguments.checkpoint:
        overrides += ["TEST.CHECKPOINT_FILE_PATH", arguments.checkpoint]
    names = read_class_names(arguments.class_names) if arguments.class_names else []
    records = video_records(arguments.videos)
    loaded = last_stage(prepare(arguments.cfg, overrides, arguments.plugin))
    predictor = Predictor(loaded, names)
    num_bad = predict_files(
        predictor, records, tqdm.write, arguments.top, arguments.draw, arguments.json
    )
    return 1 if num_bad else 0


if __name__ == "__main__":
    run_tool(main)
