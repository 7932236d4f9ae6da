#!/usr/bin/env python3
"""Times the rows of a table on this machine; needs no data.

    python projects/vimpac/speed.py 14                     # the miniature's models
    python projects/vimpac/speed.py 2 --full --videos 2    # the paper's
    python projects/vimpac/speed.py 14 --full --device cuda --videos 32

A step is masking, forward, losses and backward; the rows take turns. Writes a csv with every turn.
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
    parser.add_argument("--videos", type=int, default=4, help="in a step (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="default: output/vimpac_tables/speed/...csv")
    arguments = parser.parse_args(argv)
    # Imported late, so that --help answers at once.
    import torch
    from paper_tables.output import SPEED_FIELDS, write_csv
    from paper_tables.plan import Planner
    from paper_tables.spec import load_table
    from paper_tables.speed import time_rows

    table = load_table(arguments.table, "full" if arguments.full else "demo")
    output = arguments.output or Path("output/vimpac_tables/speed") / f"{table.name}_speed.csv"
    device = torch.device(arguments.device)
    planner = Planner(table, output.parent)
    rows = [row for row in table.rows if not row.quoted]
    entries = []
    for entry in time_rows(planner, rows, device, arguments.videos, arguments.rounds):
        entries.append(entry)
        speed = entry["clips"] / entry["seconds"]
        print(f"round {entry['round']}: {entry['row']:30} {speed:8.2f} clips/s", flush=True)
    write_csv(output, SPEED_FIELDS, entries)
    print(f"wrote {output} ({entries[0]['hardware']})")
    return 0


if __name__ == "__main__":
    run_tool(main)
