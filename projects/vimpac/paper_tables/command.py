"""What ``run_table.py`` does: plan all rows and seeds, run them, write the table."""

import difflib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from paper_tables.computed import compute, computed_markdown, write_computed
from paper_tables.measures import FAILED, Line, backbone_parameters, measure, stage_names
from paper_tables.output import (
    SPEED_FIELDS,
    markdown_table,
    read_csv,
    results_of,
    write_csv,
    write_results,
    write_runs,
)
from paper_tables.page import write_page
from paper_tables.plan import Planner
from paper_tables.report import provenance
from paper_tables.resolved import flat, resolve, words_of
from paper_tables.runner import Runner, is_done
from paper_tables.spec import (
    PROJECT,
    REPOSITORY,
    Overrides,
    Row,
    Table,
    TableError,
    load_table,
    table_numbers,
)
from paper_tables.speed import VERSION as SPEED_VERSION
from paper_tables.stages import RowPlan, Stage, shown
from vimpac_ext.files import sha256_of

SPEED_FILE = "speed.csv"
_STAGES = ("pretrain", "finetune", "both")


def parse_settings(words: Sequence[str]) -> dict[str, Overrides]:
    """Reads ``STAGE.KEY=VALUE`` words.

    Raises:
        TableError: if a word is not of this form.
    """
    settings: dict[str, Overrides] = {}
    for word in words:
        key, equals, value = word.partition("=")
        stage, _, key = key.partition(".")
        if not equals or not key or stage not in _STAGES:
            raise TableError(
                f"--set {word!r}: expected STAGE.KEY=VALUE with STAGE one of {', '.join(_STAGES)}, "
                "e.g. pretrain.SOLVER.MAX_EPOCH=5"
            )
        settings.setdefault(stage, {})[key] = yaml.safe_load(value) if value else ""
    return settings


def chosen_rows(table: Table, names: Sequence[str] | None) -> list[Row]:
    """The rows to run with these names, in the table's order; without names all.

    Raises:
        TableError: if there is no such row.
    """
    rows = {row.name: row for row in table.rows if not row.quoted}
    for name in names or ():
        if name not in rows:
            nearest = difflib.get_close_matches(name, rows, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise TableError(
                f"table {table.number} has no row {name!r}{hint}; rows to run: "
                f"{', '.join(map(repr, rows))}"
            )
    return [row for name, row in rows.items() if names is None or name in names]


class TableRun:
    """One table with some seeds.

    Args:
        number: of the table.
        size: one of `SIZES`.
        seeds: at least one.
        output: folder of all stages and tables.
        rows: names of the rows to run; None = all. The others keep the results that they have.
        settings: further overrides, by stage.

    Raises:
        TableError: for a table or row that does not exist.
    """

    def __init__(
        self,
        number: int,
        size: str,
        seeds: Sequence[int],
        output: Path,
        rows: Sequence[str] | None = None,
        settings: Mapping[str, Overrides] | None = None,
    ) -> None:
        self.table = load_table(number, size)
        self.seeds = list(dict.fromkeys(seeds))
        self.output = output
        self.settings = settings or {}
        self.planner = Planner(self.table, output, self.settings)
        self.rows = chosen_rows(self.table, rows)
        self.folder = output / "tables"
        self.plans: list[RowPlan] = []
        self.broken: dict[str, str] = {}  # row -> why it cannot be planned

    def show(self) -> int:
        """Prints rows, stages and commands; runs nothing."""
        if self.table.kind != "runs":
            print(f"table {self.table.number} is computed, nothing is trained")
            return 0
        self._plan()
        seen: set[str] = set()
        for plan in self.plans:
            print(f"\n# {plan.row.name}: {plan.row.label}, seed {plan.seed}")
            for stage in plan.stages:
                if stage.name in seen or is_done(stage):
                    print(f"# {stage.name}: {'see above' if stage.name in seen else 'done'}")
                    continue
                seen.add(stage.name)
                print(shown(stage.command))
        for stage in self._speed_stages():
            print(f"\n# all rows: speed\n{f'# {stage.name}: done' if is_done(stage) else ''}")
            print(shown(stage.command))
        for row, reason in self.broken.items():
            print(f"\n# {row}: cannot be planned: {reason}")
        print(f"\n# {len(self.plans)} rows x seeds, {len(seen)} stages to run")
        return 1 if self.broken else 0

    def run(self) -> int:
        """Runs what is not done and writes the table; returns 1 if anything failed."""
        if self.table.kind != "runs":
            return self._compute()
        self._plan()
        runner = Runner()
        try:
            stages = [stage for plan in self.plans for stage in plan.stages]
            runner.run(stages + self._speed_stages())
        finally:  # after an interruption, too: what there is
            failed = self._write()
        return 1 if failed or runner.failures else 0

    def run_speed(self) -> int:
        """Times the rows, and writes the table with what else is there; returns 1 if it failed.

        Raises:
            TableError: if the table has no speed.
        """
        if not self.table.is_timed:
            timed = [n for n in table_numbers() if "speed" in load_table(n).measures]
            raise TableError(
                f"table {self.table.number} has no speed; {', '.join(map(str, timed))} have"
            )
        runner = Runner()
        runner.run(self._speed_stages())
        self._write()
        return 1 if runner.failures else 0

    def _plan(self) -> None:
        # Seed by seed: after the first there is a whole table to look at.
        for seed in self.seeds:
            for row in self.rows:
                if row.name in self.broken:
                    continue
                try:
                    self.plans.append(self.planner.plan(row, seed))
                except ValueError as error:
                    self.broken[row.name] = str(error)

    def _speed_stages(self) -> list[Stage]:
        """The timing of all rows together; they must take turns."""
        if not self.table.is_timed:
            return []
        planned = [row for row in self.table.rows if row.pretrain and row.name not in self.broken]
        models = {row.name: flat(self._config(row)) for row in planned}
        gpu = torch.cuda.is_available() and any(cfg["NUM_GPUS"] for cfg in models.values())
        device = "cuda" if gpu else "cpu"
        text = json.dumps(models, sort_keys=True, default=str)
        key = sha256_of(str(SPEED_VERSION), device, text, length=10)
        folder = self.output / f"speed-{key}"
        command = [sys.executable, str(PROJECT / "speed.py"), str(self.table.number)]
        command += ["--output", str(folder / SPEED_FILE)]
        if self.table.size == "full":
            command += [*self.table.flags, "--device", device]
            command += ["--videos", "32"] if gpu else ["--videos", "2", "--rounds", "3"]
        command += ["--rows", *models] if self.broken else []
        command += ["--set", *self._pairs] if self._pairs else []
        return [Stage("speed", key, folder, tuple(command), device=device)]

    def _config(self, row: Row) -> Any:
        return resolve(row.pretrain[-1], self.planner.pretrain_overrides(row))

    def _lines(self) -> list[Line]:
        """Lines of this run, in the table's order, between earlier ones of other rows or seeds."""
        lines = [self._line(plan) for plan in self.plans]
        for row, reason in self.broken.items():
            lines += [
                {"row": row, "seed": seed, "status": FAILED, "reason": reason}
                for seed in self.seeds
            ]
        earlier = read_csv(self.folder / f"{self.table.name}_runs.csv")
        new = {(line["row"], line["seed"]) for line in lines}
        others = [line for line in earlier if (line["row"], line["seed"]) not in new]
        kept = [line for line in others if self._is_current(line)]
        if len(kept) < len(others):
            print(
                f"{len(others) - len(kept)} earlier results of other configurations or settings "
                "(--set) are left out of the table; their runs stay"
            )
        lines += kept
        order = [row.name for row in self.table.rows]
        known = [line for line in lines if line["row"] in order]
        return sorted(known, key=lambda line: (order.index(line["row"]), line["seed"]))

    def _is_current(self, line: Line) -> bool:
        """Whether an earlier line is of the stages that its row would have today."""
        row = next((row for row in self.table.rows if row.name == line["row"]), None)
        if row is None or line.get("settings", "") != self._settings:
            return False
        try:
            planned = stage_names(self.planner.plan(row, line["seed"]))
        except ValueError:  # the row cannot be planned any more
            return False
        return bool(line.get("stages")) and json.loads(line["stages"]) == planned

    def _line(self, plan: RowPlan) -> Line:
        stages = stage_names(plan)
        line = measure(self.output, stages)
        if "parameters" in self.table.measures:
            line["parameters"] = backbone_parameters(self.planner, plan.row)
        line |= {"settings": self._settings, "stages": json.dumps(stages)}
        return {"row": plan.row.name, "seed": plan.seed, **line}

    def _write(self) -> bool:
        lines = self._lines()
        write_runs(self.folder, self.table, lines)
        speed = self._write_speed()
        results = results_of(self.table, lines, speed)
        write_results(self.folder, self.table, results, self.command)
        page = self.folder / f"{self.table.name}.html"
        write_page(page, self.planner, results, provenance(self.table, lines, speed))
        print(markdown_table(self.table, results))
        print(f"wrote {self.folder / self.table.name}.csv, .md, .png, .html and _runs.csv")
        return any(line["status"] == FAILED for line in lines)

    def _write_speed(self) -> list[Line]:
        """``<size>_table_NN_speed.csv``: the timing of these configurations, or no file."""
        path = self.folder / f"{self.table.name}_speed.csv"
        entries: list[Line] = []
        for stage in self._speed_stages():
            entries = read_csv(stage.folder / SPEED_FILE) if is_done(stage) else []
        if entries:
            write_csv(path, SPEED_FIELDS, [e | {"settings": self._settings} for e in entries])
        else:
            path.unlink(missing_ok=True)  # of other configurations; its folder stays
        return entries

    def _compute(self) -> int:
        videos = None
        if self.table.kind == "dataset_counts" and self.table.size != "full":
            stage = self.planner.videos(self.seeds[0])
            Runner().run([stage])
            videos = stage.folder / "videos"
        lines = compute(self.table, videos)
        write_computed(self.folder, self.table, lines, self.command)
        print(computed_markdown(lines))
        print(f"wrote {self.folder / self.table.name}.csv, .md and .html")
        return 0

    @property
    def command(self) -> str:
        """The command that makes this table."""
        script = (PROJECT / "run_table.py").relative_to(REPOSITORY)
        words = ["python", str(script), str(self.table.number)]
        words += self.table.flags
        if self.table.kind == "runs":
            words += ["--seeds", *map(str, self.seeds)]
        return shlex.join([*words, *(["--set", *self._pairs] if self._pairs else [])])

    @property
    def _settings(self) -> str:
        return shlex.join(self._pairs)

    @property
    def _pairs(self) -> list[str]:
        """The settings as words of the command line."""
        pairs = [(s, words_of({k: v})) for s in self.settings for k, v in self.settings[s].items()]
        return [f"{stage}.{key}={value}" for stage, (key, value) in pairs]
