#!/usr/bin/env python3
"""Turns the videos of a configuration into the token stores that it trains and tests on.

    python tools/extract_tokens.py --cfg configs/vimpac/ssv2_large.yaml

Takes the same configuration as run_net.py. A killed extraction continues where it stopped. A video
that cannot be decoded stops it (DATA.ON_BAD_VIDEO error) or is listed in the store's
bad_videos.jsonl and left out (DATA.ON_BAD_VIDEO skip).
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
    if not files:
        parser.error("--cfg is required, e.g. --cfg configs/vimpac/demo/pretrain.yaml")
    # Imported late, so that --help answers at once.
    from vimpac_ext.engine import prepare
    from vimpac_ext.engine.extraction import extract_stores

    start_logging()
    for file in files:
        extract_stores(prepare(file, overrides, arguments.plugin))
    return 0


if __name__ == "__main__":
    run_tool(main)
