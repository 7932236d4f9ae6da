#!/usr/bin/env python3
"""Writes RESULTS.md from the folders of the runs.

    python projects/vimpac/results.py
    python projects/vimpac/results.py --note "Beside other work on the machine."

Reads the numbers of every row again from the run folders below RUNS, keeps them as csv in RESULTS
(with the plots), and writes RESULTS.md beside it from these files alone. Where RUNS is not there,
the csv files in RESULTS are used as they are.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vimpac_ext.command_line import run_tool

PROJECT = Path(__file__).resolve().parent


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("output/vimpac_tables"), help="default: %(default)s"
    )
    parser.add_argument(
        "--results", type=Path, default=PROJECT / "results", help="default: %(default)s"
    )
    parser.add_argument(
        "--note", default="", help="on how the runs in RUNS were made; kept with their numbers"
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="take RUNS even if RESULTS has rows or seeds that RUNS lacks; they are lost",
    )
    arguments = parser.parse_args(argv)
    # Imported late, so that --help answers at once.
    from paper_tables.report import collect, report

    from vimpac_ext.files import atomic_write

    for path in collect(arguments.runs, arguments.results, arguments.note, arguments.replace):
        print(f"collected {path}")
    target = arguments.results.parent / "RESULTS.md"
    with atomic_write(target) as file:
        file.write(report(arguments.results))
    print(f"wrote {target}")
    return 0


if __name__ == "__main__":
    run_tool(main)
