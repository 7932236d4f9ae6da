"""The numbers that tools/benchmark.py wrote, as a table for docs/: no figure is typed by hand.

    python -m vimpac_ext.benchmarks.table numbers.json
    python -m vimpac_ext.benchmarks.table numbers.json --into docs/performance.md --name small_cpu

The second replaces what stands between ``<!-- figures: small_cpu -->`` and the next
``<!-- end of figures -->``.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vimpac_ext.command_line import run_tool
from vimpac_ext.files import atomic_write

_BEGIN = "<!-- figures: {} -->"
_END = "<!-- end of figures -->"


def markdown_table(content: Mapping[str, Any]) -> str:
    """Command, machine, and a table with a column for each result.

    Args:
        content: of a file that tools/benchmark.py wrote with --output.
    """
    machine, results = content["machine"], content["results"]
    names = list(dict.fromkeys(name for result in results for name in result["rows"]))
    place = f"{machine['processor']}, {machine['cores']} cores"
    if machine["gpu"]:
        place += f", {machine['gpu']}"
    lines = [
        f"`{content['command']}`",
        "",
        f"{place}; Python {machine['python']}, torch {machine['torch']}; load at the start "
        f"{machine['load_average']}.",
        "",
        *(f"{number}. {result['title']}" for number, result in enumerate(results, 1)),
        "",
        "| | " + " | ".join(str(number) for number in range(1, len(results) + 1)) + " |",
        "|---" * (len(results) + 1) + "|",
    ]
    for name in names:
        cells = (_cell(result["rows"].get(name)) for result in results)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def insert_table(path: Path, name: str, table: str) -> None:
    """Puts a table in its place in a document.

    Args:
        path: of the document.
        name: of the place.
        table: Markdown.

    Raises:
        ValueError: if the document has no such place.
    """
    text = path.read_text(encoding="utf-8")
    begin = _BEGIN.format(name)
    before, found, rest = text.partition(f"{begin}\n")
    _, ended, after = rest.partition(_END)
    if not found or not ended:
        raise ValueError(f"{path} has no place for these figures: {begin} ... {_END}")
    with atomic_write(path) as file:
        file.write(f"{before}{begin}\n{table}\n{_END}{after}")


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main(argv: Sequence[str] | None = None) -> None:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", type=Path, help="JSON file of tools/benchmark.py --output")
    parser.add_argument("--into", type=Path, metavar="MARKDOWN", help="default: print it")
    parser.add_argument("--name", help="of the place in the document")
    arguments = parser.parse_args(argv)
    if (arguments.into is None) != (arguments.name is None):
        parser.error("--into and --name belong together")
    table = markdown_table(json.loads(arguments.numbers.read_text(encoding="utf-8")))
    if arguments.into is None:
        print(table)
    else:
        insert_table(arguments.into, arguments.name, table)


if __name__ == "__main__":
    run_tool(main)
