"""Whether the paper's findings show in what was run: computed, never written by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paper_tables.output import RowResult, digits_of, title_of
from paper_tables.spec import PROJECT, Table, TableError
from paper_tables.spread import Spread, chance_width, half_width, spread_of

FILE = PROJECT / "findings.yaml"
SHOWS, OPPOSITE, NOISE, NOT_RUN = "shows", "the opposite shows", "not told from noise", "not run"
ONE_SEED = "cannot be told from one seed"
EQUAL, UNEQUAL = "no difference found", "a difference shows"
ALIKE = 5.0  # points: "no difference" needs a confidence interval that lies within so many
CEILING = 90.0  # percent: above it there is little left to differ in
_KEYS = {"table", "finding", "measure", "higher", "lower", "comment"}
_MORE_KEYS = {"equal", "lower_measure", "gain_over"}


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
        lower_measure: column of the second row, if it is another one.
        gain_over: two rows, if the claim is about gains: what is compared are the differences of
            the rows above to these.
    """

    table: int
    finding: str
    measure: str
    higher: str
    lower: str
    comment: str
    equal: bool = False
    lower_measure: str = ""
    gain_over: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of all rows that it is about."""
        return (self.higher, self.lower, *self.gain_over)


@dataclass(frozen=True)
class Verdict:
    """What the runs say about a finding.

    Attributes:
        word: one of the constants of this module.
        sentence: with the numbers that it rests on.
        difference: with its confidence interval, in short; empty without one.
    """

    word: str
    sentence: str
    difference: str = ""


def load_findings(path: Path = FILE) -> list[Finding]:
    """Reads the findings.

    Raises:
        TableError: if an entry lacks a key or has an unknown one.
    """
    entries: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for entry in entries:
        wrong = (_KEYS - entry.keys()) | (entry.keys() - _KEYS - _MORE_KEYS)
        if wrong:
            raise TableError(
                f"{path}: finding {entry.get('finding')!r} lacks or has the unknown "
                f"{', '.join(sorted(wrong))}"
            )
    return [
        Finding(**entry | {"gain_over": tuple(entry.get("gain_over", ()))}) for entry in entries
    ]


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
    difference in each seed, Student's t; for accuracies it is at least as wide as the number of
    test videos alone makes it. That there is none needs an interval within `ALIKE`.

    Raises:
        TableError: if the finding names a row or column that the table does not have.
    """
    rows = {result.row.name: result for result in results}
    for name in finding.rows:
        if name not in rows:
            raise TableError(
                f"finding {finding.finding!r}: table {table.number} has no row {name!r}"
            )
    bases = [rows.get(name) for name in finding.gain_over] or [None, None]
    measures = (finding.measure, finding.lower_measure or finding.measure)
    sides = [
        _Side(rows[name], measured_column(table, measure), base)
        for name, measure, base in zip(finding.rows, measures, bases, strict=False)
    ]
    common = sorted(sides[0].values.keys() & sides[1].values.keys())
    unit = "round" if finding.measure == "speed" else "seed"
    if not common:
        return Verdict(NOT_RUN, _missing(sides, unit))
    digits = digits_of(table, sides[0].column)
    first, second = (side.over(common) for side in sides)
    shares = [share for side in sides for share in side.shares(common)]
    differences = [sides[0].values[seed] - sides[1].values[seed] for seed in common]
    width = max(half_width(differences), chance_width(shares, len(common)))
    mean = first.mean - second.mean
    if len(common) > 1:
        short = f"{mean:+.{digits}f} ± {width:.{digits}f}"
        told, count = f"{short} (95 %)", f"{len(common)} {unit}s"
        word = _word(mean, width, finding.equal)
    else:
        short = f"{mean:+.{digits}f}"
        told, count, word = short, f"one {unit}", ONE_SEED
    names = [side.name(finding) for side in sides]
    # A cell has the median of a speed's rounds.
    kind = "mean " if finding.measure == "speed" else ""
    sentence = (
        f"{title_of(sides[0].column)}: {kind}{first.shown(digits)} for {names[0]}, "
        f"{second.shown(digits)} for {names[1]}; difference {told}, {count}."
    )
    if _at_ceiling(sides[0].column, first, second) and word not in (SHOWS, OPPOSITE, UNEQUAL):
        sentence += f" Both are above {CEILING:.0f} %, where this task has little left to tell."
    return Verdict(word, sentence, short)


@dataclass(frozen=True)
class _Side:
    """One of the two things that are compared: a row's values, or their gain over another row."""

    result: RowResult
    column: str
    base: RowResult | None = None

    @property
    def values(self) -> dict[int, float]:
        values = self.result.values(self.column)
        if self.base is None:
            return values
        base = self.base.values(self.column)
        return {seed: values[seed] - base[seed] for seed in values.keys() & base.keys()}

    def over(self, seeds: Sequence[int]) -> Spread:
        found = spread_of([self.values[seed] for seed in seeds])
        assert found
        return found

    def shares(self, seeds: Sequence[int]) -> list[tuple[float, int]]:
        """Share of right answers and test videos of each seed; nothing for other measures."""
        if not self.column.startswith("top1:"):
            return []
        shares = []
        for result in filter(None, (self.result, self.base)):
            videos = {line["seed"]: int(line.get("test_videos") or 0) for line in result.lines}
            values = result.values(self.column)
            shares += [(values[seed] / 100, videos[seed]) for seed in seeds if videos.get(seed)]
        return shares

    def name(self, finding: Finding) -> str:
        label = repr(self.result.row.label)
        if self.base is not None:
            label += f" over {self.base.row.label!r}"
        return f"{label} ({title_of(self.column)})" if finding.lower_measure else label


def _missing(sides: Sequence[_Side], unit: str) -> str:
    """Which of two rows lacks what."""
    if not any(side.values for side in sides):
        labels = dict.fromkeys(repr(side.result.row.label) for side in sides)
        return f"No {unit} of {' and '.join(labels)} is finished."
    parts = []
    for side in sides:
        seeds = ", ".join(map(str, sorted(side.values)))
        parts.append(f"{side.result.row.label!r} has {f'{unit} {seeds}' if seeds else 'none'}")
    return f"No {unit} is finished for both: {', '.join(parts)}."


def _at_ceiling(column: str, first: Spread, second: Spread) -> bool:
    return column.startswith("top1:") and min(first.mean, second.mean) > CEILING


def _word(mean: float, width: float, equal: bool) -> str:
    differs = abs(mean) > width
    if equal:
        # Too few or too different runs to see a difference are no evidence that there is none.
        return UNEQUAL if differs else EQUAL if abs(mean) + width <= ALIKE else NOISE
    if not differs:
        return NOISE
    return SHOWS if mean > 0 else OPPOSITE
