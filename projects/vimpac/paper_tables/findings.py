"""Whether the paper's findings show in what was run: computed, never written by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paper_tables.output import DIGITS, RowResult, title_of
from paper_tables.spec import PROJECT, Table, TableError
from paper_tables.spread import half_width, spread_of

FILE = PROJECT / "findings.yaml"
SHOWS, OPPOSITE, NOISE, NOT_RUN = "shows", "the opposite shows", "not told from noise", "not run"
EQUAL, UNEQUAL = "no difference found", "a difference shows"
ALIKE = 5.0  # points: "no difference" needs a confidence interval that lies within so many
CEILING = 95.0  # percent: above it there is little left to differ in
_KEYS = {"table", "finding", "measure", "higher", "lower", "comment"}


@dataclass(frozen=True)
class Finding:
    """A claim of the paper about two rows of a table.

    Attributes:
        table: number.
        finding: the claim, one sentence.
        measure: column by the paper's name of the data set, e.g. "top1:UCF101".
        higher: row that is claimed to be higher.
        lower: row that is claimed to be lower.
        comment: a hand-written sentence.
        equal: the claim is that they do not differ much.
    """

    table: int
    finding: str
    measure: str
    higher: str
    lower: str
    comment: str
    equal: bool = False


@dataclass(frozen=True)
class Verdict:
    """What the runs say about a finding.

    Attributes:
        word: one of the constants of this module.
        sentence: with the numbers that it rests on.
    """

    word: str
    sentence: str


def load_findings(path: Path = FILE) -> list[Finding]:
    """Reads the findings.

    Raises:
        TableError: if an entry lacks a key or has an unknown one.
    """
    entries: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for entry in entries:
        wrong = (_KEYS - entry.keys()) | (entry.keys() - _KEYS - {"equal"})
        if wrong:
            raise TableError(
                f"{path}: finding {entry.get('finding')!r} lacks or has the unknown "
                f"{', '.join(sorted(wrong))}"
            )
    return [Finding(**entry) for entry in entries]


def measured_column(table: Table, measure: str) -> str:
    """The table's column that stands for the paper's.

    Raises:
        TableError: if there is none.
    """
    for column in table.columns:
        name = table.paper_column(column)
        if measure == (f"top1:{name}" if column.startswith("top1:") else name):
            return column
    raise TableError(f"{table.name} has no column for {measure!r}; it has {table.columns}")


def judge(finding: Finding, table: Table, results: Sequence[RowResult]) -> Verdict:
    """Compares the two rows seed by seed (or, for speed, timing round by round).

    A difference shows if its 95 % confidence interval excludes zero: mean over the seeds of the
    difference in each seed, Student's t. That there is none needs an interval within `ALIKE`.

    Raises:
        TableError: if the finding names a row or column that the table does not have.
    """
    rows = {result.row.name: result for result in results}
    for name in (finding.higher, finding.lower):
        if name not in rows:
            raise TableError(
                f"finding {finding.finding!r}: table {table.number} has no row {name!r}"
            )
    column = measured_column(table, finding.measure)
    higher, lower = (rows[name].values(column) for name in (finding.higher, finding.lower))
    common = sorted(higher.keys() & lower.keys())
    if not common:
        return Verdict(NOT_RUN, "No seed has both rows.")
    digits = DIGITS.get(column, 1)
    differences = [higher[seed] - lower[seed] for seed in common]
    width = half_width(differences)
    first, second = (spread_of([values[seed] for seed in common]) for values in (higher, lower))
    assert first
    assert second
    mean = first.mean - second.mean
    unit = "rounds" if column == "speed" else "seeds"
    interval = f"± {width:.{digits}f} (95 %)" if len(common) > 1 else "in a single one"
    sentence = (
        f"{title_of(column)}: {first.shown(digits)} for {rows[finding.higher].row.label!r}, "
        f"{second.shown(digits)} for {rows[finding.lower].row.label!r}; difference "
        f"{mean:+.{digits}f} {interval}, {len(common)} {unit}."
    )
    if column.startswith("top1:") and min(first.mean, second.mean) > CEILING:
        sentence += (
            f" Both are above {CEILING:.0f} %: this task is too easy to tell; see --few-labels."
        )
    return Verdict(_word(mean, width, finding.equal), sentence)


def _word(mean: float, width: float, equal: bool) -> str:
    differs = abs(mean) > width
    if equal:
        # Too few or too different runs to see a difference are no evidence that there is none.
        return UNEQUAL if differs else EQUAL if abs(mean) + width <= ALIKE else NOISE
    if not differs:
        return NOISE
    return SHOWS if mean > 0 else OPPOSITE
