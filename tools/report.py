#!/usr/bin/env python3
"""Writes one self-contained HTML file about one run, or comparing several.

    python tools/report.py output/demo/seed_0/finetune          # writes report.html into it
    python tools/report.py output/a output/b --output both.html
    python tools/report.py output/a --base configs/vimpac/demo/finetune.yaml

Test result and protocol, curves, the folder's pictures, classes, bad videos, configuration,
checkpoints and versions. What a run does not have is stated. Opens without server or network.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vimpac_ext.command_line import run_tool, start_logging


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="OUTPUT_DIR", help="of a run")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="HTML",
        help="file to write (default: report.html in the folder of a single run)",
    )
    parser.add_argument(
        "--base", metavar="YAML", help="configuration that the run came from, to show what differs"
    )
    arguments = parser.parse_args(argv)
    output = arguments.output or arguments.folders[0] / "report.html"
    if arguments.output is None and len(arguments.folders) > 1:
        parser.error("several runs need --output, e.g. --output report.html")
    if output.suffix.lower() not in (".html", ".htm"):
        parser.error(f"--output must end in .html, found {output}")
    # Imported late, so that --help answers at once.
    from vimpac_ext.engine.run_report import write_run_report

    start_logging()
    write_run_report(arguments.folders, output, arguments.base)
    return 0


if __name__ == "__main__":
    run_tool(main)
