#!/usr/bin/env python3
"""Runs the rows of one of the paper's tables: pre-train, fine-tune, test; then writes the table.

    python projects/vimpac/run_table.py 5                     # miniature, on the demo's videos
    python projects/vimpac/run_table.py 5 --seeds 0 1 2       # with mean and spread
    python projects/vimpac/run_table.py 5 --rows "block, 256" "i.i.d., 256"
    python projects/vimpac/run_table.py 14 --speed            # only the speed column; no data
    python projects/vimpac/run_table.py 5 --dry-run           # rows, stages and their commands
    python projects/vimpac/run_table.py 5 --few-labels        # miniature, a harder task
    python projects/vimpac/run_table.py 5 --probe             # the same without fine-tuning
    python projects/vimpac/run_table.py 5 --full              # the paper's size, on real data
    python projects/vimpac/run_table.py 5 --set pretrain.SOLVER.MAX_EPOCH=5 both.NUM_GPUS=1

Stop it with Ctrl-C and run it again: what is done is kept, a stage under way continues from its
checkpoint. Rows and tables share what they have in common (videos, tokens, equal pre-trainings). A
row that fails is reported and the others go on. Results are written below OUTPUT/tables as csv,
Markdown and a plot; projects/vimpac/results.py makes RESULTS.md of them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vimpac_ext.command_line import run_tool

NUMBERS = "1 to 9, 14, 15, 16 are run; 10 and 13 are computed"


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code: 1 if a row failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=int, help=f"number of the paper's table: {NUMBERS}")
    size = parser.add_mutually_exclusive_group()
    for flag, name, what in (
        ("--full", "full", "the paper's size, not the miniature"),
        ("--few-labels", "few_labels", "the miniature, fine-tuned on 80 of 500 labels"),
        ("--probe", "probe", "the miniature, its features frozen, 20 draws of 8 labels a class"),
    ):
        size.add_argument(flag, dest="size", action="store_const", const=name, help=what)
    parser.set_defaults(size="demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these (default: all)")
    parser.add_argument(
        "--output", type=Path, default=Path("output/vimpac_tables"), help="default: %(default)s"
    )
    parser.add_argument(
        "--speed", action="store_true", help="only time the rows' training steps (tables 2, 3, 14)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="STAGE.KEY=VALUE",
        help="overrides for all rows; STAGE is pretrain, finetune or both",
    )
    arguments = parser.parse_args(argv)
    if arguments.speed and arguments.rows:
        parser.error("--speed times all rows, in turns; leave out --rows")
    # Imported late, so that --help answers at once.
    from paper_tables.command import TableRun, parse_settings

    run = TableRun(
        arguments.table,
        arguments.size,
        arguments.seeds,
        arguments.output,
        rows=arguments.rows,
        settings=parse_settings(arguments.set),
    )
    if arguments.dry_run:
        return run.show()
    return run.run_speed() if arguments.speed else run.run()


if __name__ == "__main__":
    run_tool(main)
