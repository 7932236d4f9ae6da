#!/usr/bin/env python3
r"""Turns token folders of the authors' extraction (LMDB) into one token store.

    python tools/convert_tokens.py video_tokens/dalle_ucf101_train_test_fps16_hflip0_128*128 \
        data/tokens/ucf101_16fps_128

Each folder has one spatial view, which its name says; all views of a data set go into one store.
They must have one rate and one crop size. A killed conversion continues where it stopped. At the
end every clip is read back and compared. Videos that are damaged, or missing in a view, are listed
here and in the store's bad_videos.jsonl; then the exit code is 1. The labels are in the store's
videos.csv (`video label` lines).

Conversion is optional: TRAIN.TOKEN_STORE may name the authors' folders as they are. A token store
reads a clip without reading its whole video.
"""

import argparse
from collections.abc import Sequence

from vimpac_ext.command_line import run_tool, start_logging


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", nargs="+", metavar="SRC", help="a token folder, a folder of such, or a pattern"
    )
    parser.add_argument("store", metavar="DST", help="folder of the token store to make")
    parser.add_argument(
        "--no-verify", action="store_true", help="do not read the clips back at the end"
    )
    arguments = parser.parse_args(argv)
    # Imported late, so that --help answers at once.
    from vimpac_ext.tasks.convert_tokens import convert_tokens

    start_logging()
    summary = convert_tokens(arguments.source, arguments.store, verify=not arguments.no_verify)
    print(f"{arguments.store}: {summary}")
    return 1 if summary.bad_videos else 0


if __name__ == "__main__":
    run_tool(main)
