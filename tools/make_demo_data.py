"""Writes the demo data: labelled clips of Something-Something V2's format, and unlabelled videos.

Example:
    python tools/make_demo_data.py --output output/demo/data --seed 0
"""

import argparse
import sys
from pathlib import Path

from vimpac_ext.data.synthetic import make_demo_data


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write or complete")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--num-train", type=int, default=500, help="labelled videos, default: %(default)s"
    )
    parser.add_argument(
        "--num-validation", type=int, default=200, help="labelled videos, default: %(default)s"
    )
    parser.add_argument(
        "--num-unlabelled", type=int, default=500, help="longer videos, default: %(default)s"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes, default: %(default)s")
    return parser


def main() -> None:
    """Entry point."""
    args = _parser().parse_args()
    try:
        data = make_demo_data(
            args.output,
            seed=args.seed,
            num_train=args.num_train,
            num_validation=args.num_validation,
            num_unlabelled=args.num_unlabelled,
            num_workers=args.workers,
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{data.root}: wrote {data.num_written} videos, kept {data.num_kept}\n")


if __name__ == "__main__":
    main()
