#!/usr/bin/env python3
"""Turns the videos of a configuration into the token stores that it trains and tests on.

    python tools/extract_tokens.py --cfg configs/vimpac/ssv2_large.yaml
    python tools/extract_tokens.py --cfg a.yaml --num_shards 4 --shard_id 0      # one of four
    torchrun --nproc_per_node 8 tools/extract_tokens.py --cfg a.yaml             # or srun
    python tools/extract_tokens.py --verify STORE [--repair]
    python tools/extract_tokens.py --stats STORE [--json]

Takes the same configuration as run_net.py. Several processes share the videos; stopped or killed,
with the same number of shards or another, the same command goes on where it was. A video that
cannot be decoded stops it (DATA.ON_BAD_VIDEO error) or is listed in the store's
bad_videos*.jsonl and left out (skip).

Exit codes: 0 all done, 1 error or damaged store, 3 done but some videos could not be decoded,
75 stopped by a signal, 130 by Ctrl-C. See docs/extraction.md.
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

SOME_VIDEOS_FAILED = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument("--num_shards", type=int, metavar="N", help="processes that share the work")
    parser.add_argument("--shard_id", type=int, metavar="I", help="which of them this is, from 0")
    parser.add_argument("--verify", metavar="STORE", help="check every byte; names damaged videos")
    parser.add_argument("--repair", action="store_true", help="with --verify: leave them out")
    parser.add_argument("--stats", metavar="STORE", help="size, lengths, use of the vocabulary")
    parser.add_argument("--json", action="store_true", help="for --verify and --stats")
    arguments = parser.parse_args(argv)
    files, overrides = configs_and_overrides(arguments)
    if sum(map(bool, (files, arguments.verify, arguments.stats))) != 1:
        parser.error(
            "one of --cfg, --verify and --stats is required, e.g. "
            "--cfg configs/vimpac/demo/pretrain.yaml"
        )
    if arguments.repair and not arguments.verify:
        parser.error("--repair goes with --verify STORE")
    # Imported late, so that --help answers at once.
    from vimpac_ext.data.store_report import statistics, verification
    from vimpac_ext.engine import prepare
    from vimpac_ext.engine.extraction import extract_stores, work_share

    if arguments.verify:
        report, whole = verification(arguments.verify, arguments.repair, arguments.json)
        print(report)
        return 0 if whole else 1
    if arguments.stats:
        print(statistics(arguments.stats, arguments.json))
        return 0
    start_logging()
    share, failed = work_share(arguments.shard_id, arguments.num_shards), False
    for file in files:
        summaries = extract_stores(prepare(file, overrides, arguments.plugin), share)
        failed |= any(summary.bad_videos for summary in summaries.values())
    return SOME_VIDEOS_FAILED if failed else 0


if __name__ == "__main__":
    run_tool(main)
