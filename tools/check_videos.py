#!/usr/bin/env python3
"""Decodes videos in parallel and writes down which are broken and why.

    python tools/check_videos.py --cfg configs/vimpac/ucf101_small.yaml
    python tools/check_videos.py --dataset UCF101 data/ucf101 split=test split_id=2
    python tools/check_videos.py my_videos/ one.mp4 "another clip.avi"

Every video has a time limit and a process that can be killed, so that no file stops the check.
The output folder then holds checked_videos.jsonl (every result), bad_videos.jsonl (video_id, path
and reason of the bad ones) and summary.json. An interrupted check continues; checked files are
looked at again only when they changed. The exit code is 1 if a video is bad, 0 if none is.
"""

import argparse
from collections.abc import Sequence

from vimpac_ext.command_line import run_tool, start_logging


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--cfg", nargs="+", default=[], metavar="YAML", help="the data sets of configurations"
    )
    source.add_argument(
        "--dataset", metavar="NAME", help="a registered data set; its folder and key=value follow"
    )
    parser.add_argument("paths", nargs="*", help="files and folders, or what --dataset needs")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of --cfg"
    )
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE")
    parser.add_argument("--output", default="output/check_videos", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="processes, default: %(default)s")
    parser.add_argument(
        "--timeout", type=float, default=600, help="seconds a video, default: %(default)s"
    )
    parser.add_argument(
        "--frame-rate", type=float, help="folders of images are videos of this rate (paths only)"
    )
    parser.add_argument("--quick", action="store_true", help="open only, decode nothing")
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    paths = arguments.paths
    if not arguments.cfg and not paths:
        parser.error("what to check? Give --cfg YAML, --dataset NAME FOLDER, or files and folders")
    if arguments.cfg and paths:
        parser.error(f"--cfg takes no paths, found {paths[0]!r}; overrides go after --opts")
    # Imported late, so that --help answers at once.
    from vimpac_ext.data.video_check import records_of_paths
    from vimpac_ext.engine.checking import check_and_report, records_of_configs, records_of_dataset

    start_logging()
    if arguments.cfg:
        records = records_of_configs(arguments.cfg, arguments.opts, arguments.plugin)
    elif arguments.dataset:
        records = records_of_dataset(arguments.dataset, paths[0], paths[1:], arguments.plugin)
    else:
        records = records_of_paths(paths, arguments.frame_rate)
    summary = check_and_report(
        records,
        arguments.output,
        num_workers=arguments.workers,
        timeout=arguments.timeout,
        quick=arguments.quick,
        again=arguments.again,
    )
    return 1 if summary.bad else 0


if __name__ == "__main__":
    run_tool(main)
