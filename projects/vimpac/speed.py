#!/usr/bin/env python3
"""Times the rows of a table on this machine; needs no data.

    python projects/vimpac/speed.py 14                     # the miniature's models
    python projects/vimpac/speed.py 2 --full --videos 2    # the paper's
    python projects/vimpac/speed.py 14 --full --device cuda --videos 32

A step is masking, forward, losses, backward and update; the rows take turns. On one thread of a
processor its time counts, which other work on the machine hardly changes, else the clock's. Writes
a csv with every turn; `run_table.py N --speed` does this and puts it into the table.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vimpac_ext.command_line import run_tool


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=int, help="number of the paper's table, e.g. 2, 3 or 14")
    parser.add_argument("--full", action="store_true", help="the paper's sizes, not the demo's")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="%(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: %(default)s)")
    parser.add_argument("--videos", type=int, default=16, help="in a step (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these (default: all)")
    parser.add_argument("--set", nargs="+", default=[], metavar="STAGE.KEY=VALUE")
    parser.add_argument("--output", type=Path, help="default: output/vimpac_tables/speed/...csv")
    arguments = parser.parse_args(argv)
    # Imported late, so that --help answers at once.
    from paper_tables.command import chosen_rows, parse_settings
    from paper_tables.output import SPEED_FIELDS, speed_of, write_csv
    from paper_tables.plan import Planner
    from paper_tables.spec import load_table
    from paper_tables.speed import time_rows

    table = load_table(arguments.table, "full" if arguments.full else "demo")
    output = arguments.output or Path("output/vimpac_tables/speed") / f"{table.name}_speed.csv"
    planner = Planner(table, output.parent, parse_settings(arguments.set))
    rows = chosen_rows(table, arguments.rows)
    options = (arguments.device, arguments.videos, arguments.rounds, arguments.threads)
    entries = []
    for entry in time_rows(planner, rows, *options):
        entries.append(entry)
        shown = f"round {entry['round']}: {entry['row']:30} {speed_of(entry):8.2f} clips/s"
        print(shown, flush=True)
    write_csv(output, SPEED_FIELDS, entries)
    print(f"wrote {output} ({entries[0]['hardware']})")
    return 0


if __name__ == "__main__":
    run_tool(main)
