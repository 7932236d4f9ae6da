#!/usr/bin/env python3
"""How far hidden tokens can be guessed by copying a neighbour, by number (Figures 4 and 7, G.2).

    python projects/vimpac/copy_paste.py --cfg configs/vimpac/demo/pretrain.yaml --output a.csv
    python projects/vimpac/copy_paste.py --cfg configs/vimpac/demo/pretrain.yaml --output b.csv \
        --video my_videos/*.mp4 DATA.TRAIN_CROP_SIZE 128

Uniform against block masks, at 15 % and 45 %, copying from the same frame and from all frames.
Without --video, the tokens are those of TRAIN.TOKEN_STORE. Prints means and standard deviations
over the videos as Markdown and writes every video's numbers as csv; results.py shows those that
are called copy_paste_NAME.csv in projects/vimpac/results.
"""

import argparse
import shlex
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
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="CSV", help="file to write")
    add("--video", nargs="+", default=[], metavar="FILE", help="default: TRAIN.TOKEN_STORE")
    add("--ratio", type=float, nargs="+", default=[0.15, 0.45], help="default: 0.15 0.45")
    add("--masks", type=int, default=10, help="of each kind and clip (default: %(default)s)")
    add("--clips", type=int, default=2, help="of each video (default: %(default)s)")
    add("--limit", type=int, default=0, metavar="N", help="only the first N videos")
    add("--no-pictures", action="store_true", help="tokens only: the tokenizer need not draw")
    add("--seed", type=int, default=0, help="of the masks (default: %(default)s)")
    arguments = parser.parse_args(argv)
    files, overrides = configs_and_overrides(arguments)
    videos = arguments.video
    if len(files) != 1:
        parser.error("--cfg takes one file here, e.g. --cfg configs/vimpac/demo/pretrain.yaml")
    if arguments.output.suffix != ".csv":
        parser.error(f"--output must end in .csv, found {arguments.output}")
    # Imported late, so that --help answers at once.
    from paper_tables.copies import copies_markdown, read_copies, write_copies

    from vimpac_ext.engine import figures, prepare

    start_logging()
    loaded = prepare(files[0], overrides, arguments.plugin)
    found = figures.measure_copies(
        *(loaded, videos, arguments.seed, arguments.ratio, arguments.masks),
        *(arguments.clips, arguments.limit, not arguments.no_pictures),
    )
    words = ["python", "projects/vimpac/copy_paste.py", "--cfg", files[0]]
    # What differs from the defaults; the videos' own paths are nobody's business.
    for name in ("ratio", "masks", "clips", "limit", "seed"):
        value, usual = getattr(arguments, name), parser.get_default(name)
        if value != usual:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    words += ["--no-pictures"] if arguments.no_pictures else []
    words += [*(["--video", "FILES"] if videos else []), "--output", "CSV", *overrides]
    write_copies(
        arguments.output, found, loaded, shlex.join(words), arguments.seed, stored=not videos
    )
    print(copies_markdown(read_copies(arguments.output)))
    print(f"wrote {arguments.output}")
    return 0


if __name__ == "__main__":
    run_tool(main)
