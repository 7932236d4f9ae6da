"""Reads the declarative description of a table: ``tables/table_NN.yaml``."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parent.parent
REPOSITORY = PROJECT.parent.parent
TABLES = PROJECT / "tables"
FEW_LABELS = "few_labels"  # the miniature, fine-tuned on fewer labels: tables/_few_labels.yaml
PROBE = "probe"  # the miniature, with linear classifiers on frozen features: probing.py
SIZES = ("demo", FEW_LABELS, PROBE, "full")
_DESCRIBED = ("demo", "full")  # sizes that the tables' files describe
MEASURES = ("mask_accuracy", "contrast_loss", "top1", "parameters", "speed")
KINDS = {  # kind -> keys that such a table has besides the common ones
    "runs": ("base", "measures", "common", "rows", *_DESCRIBED),
    "induced_ratios": ("blocks", "grids"),
    "dataset_counts": ("datasets", "demo_datasets"),
}

Overrides = dict[str, Any]

_TABLE_KEYS = ("number", "title", "section", "kind")
_ROW_KEYS = ("name", "paper", "quoted")
RATIOS = ("blocks_at_same_ratio", "uniform_at_same_ratio")
_LAYER_KEYS = ("both", "pretrain", "finetune")
_SIZE_KEYS = ("pretrain", "targets", "common")
_SIZE_ROW_KEYS = (*_LAYER_KEYS, "label", "config", "targets", *RATIOS)


class TableError(ValueError):
    """A mistake in the description of a table, or a table or row that does not exist."""


@dataclass(frozen=True)
class Target:
    """A data set that a row is fine-tuned and tested on.

    Attributes:
        name: its name in results.
        config: fine-tuning configuration, below the repository.
        overrides: what this target changes there.
        paper: the paper's column that it stands for.
    """

    name: str
    config: str
    overrides: Overrides
    paper: str


@dataclass(frozen=True)
class Row:
    """One row at one size.

    Attributes:
        name: the same at both sizes.
        label: what is printed.
        paper: column -> number printed in the paper.
        quoted: the paper cites it from others; it is shown and not run.
        pretrain: configurations of the stages of pre-training, none for a row without.
        pretrain_overrides: for each of them.
        targets: fine-tunings, their overrides complete.
        blocks_at_same_ratio: as many blocks as hide on this row's grid what the configuration's
            own do on its own grid, as nearly as can be.
        uniform_at_same_ratio: replace the block masker by a uniform one that hides as much.
    """

    name: str
    label: str
    paper: dict[str, float]
    quoted: bool = False
    pretrain: tuple[str, ...] = ()
    pretrain_overrides: Overrides = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    blocks_at_same_ratio: bool = False
    uniform_at_same_ratio: bool = False


@dataclass(frozen=True)
class Table:
    """One table at one size.

    Attributes:
        number: the paper's.
        title: what it is about.
        section: of the paper.
        size: "demo" (miniature), "few_labels" (the same with fewer labels), "probe" (the same with
            classifiers on frozen features) or "full".
        kind: "runs" (trained), or computed: "induced_ratios", "dataset_counts".
        measures: of `MEASURES`.
        rows: in the paper's order.
        content: the file as it is, for the computed kinds.
    """

    number: int
    title: str
    section: str
    size: str
    kind: str
    measures: tuple[str, ...]
    rows: tuple[Row, ...]
    content: dict[str, Any]

    @property
    def size_words(self) -> str:
        """The size for a heading."""
        return {
            "demo": "miniature",
            FEW_LABELS: "miniature, few labels",
            PROBE: "miniature, frozen features",
            "full": "full size",
        }[self.size]

    @property
    def flags(self) -> list[str]:
        """What ``run_table.py`` needs to run this size."""
        words = {"demo": [], FEW_LABELS: ["--few-labels"], PROBE: ["--probe"], "full": ["--full"]}
        return words[self.size]

    @property
    def is_timed(self) -> bool:
        """Whether its speed is measured; the miniature's other forms have the same pre-training."""
        return "speed" in self.measures and self.size in _DESCRIBED

    @property
    def name(self) -> str:
        """Stem of the files with results."""
        return f"{self.size}_table_{self.number:02d}"

    @property
    def target_names(self) -> list[str]:
        """All data sets of the rows, in order."""
        names = (target.name for row in self.rows for target in row.targets)
        return list(dict.fromkeys(names))

    @property
    def columns(self) -> list[str]:
        """Measured columns: "top1" becomes one for each data set."""
        columns: list[str] = []
        for measure in self.measures:
            own = [f"top1:{name}" for name in self.target_names] if measure == "top1" else [measure]
            columns += own
        return columns

    @property
    def paper_columns(self) -> list[str]:
        """Columns of the paper that any row has a number for."""
        return list(dict.fromkeys(column for row in self.rows for column in row.paper))

    def paper_column(self, column: str) -> str:
        """The paper's column that a measured one is compared with."""
        if not column.startswith("top1:"):
            return column
        named = column.removeprefix("top1:")
        targets = (target for row in self.rows for target in row.targets)
        return next(target.paper for target in targets if target.name == named)


def table_numbers(folder: Path = TABLES) -> list[int]:
    """Numbers of the tables that are described."""
    return sorted(int(path.stem.removeprefix("table_")) for path in folder.glob("table_*.yaml"))


def load_table(number: int, size: str = "demo", folder: Path = TABLES) -> Table:
    """Reads a table.

    Args:
        number: the paper's.
        size: one of `SIZES`.
        folder: of the descriptions.

    Raises:
        TableError: there is no such table, or its description is wrong; names file and key.
    """
    if size not in SIZES:
        raise TableError(f"size {size!r} is not one of {', '.join(SIZES)}")
    path = folder / f"table_{number:02d}.yaml"
    if not path.is_file():
        known = ", ".join(map(str, table_numbers(folder)))
        raise TableError(f"table {number} is not described in {folder}; there are: {known}")
    content = _read(path)
    defaults: dict[str, Any] = {}
    if "base" in content:
        defaults = _read(path.with_name(content["base"]))
        _check_keys(defaults, _DESCRIBED, f"{content['base']}")
    kind = content.get("kind", "runs")
    if kind not in KINDS:
        raise TableError(f"{path.name}: kind {kind!r} is not one of {', '.join(KINDS)}")
    _check_keys(content, (*_TABLE_KEYS, *KINDS[kind]), path.name)
    described = "full" if size == "full" else "demo"
    of_size = {**defaults.get(described, {}), **content.get(described, {})}
    _check_keys(of_size, _SIZE_KEYS, f"{path.name}, {described}")
    rows = [_row(path.name, content, of_size, described, row) for row in content.get("rows", ())]
    if size == FEW_LABELS:
        described_rows = {row["name"]: row.get(FEW_LABELS) or {} for row in content.get("rows", ())}
        rows = [_with_few_labels(row, path.name, described_rows[row.name]) for row in rows]
    measures = tuple(content.get("measures", ()))
    for measure in measures:
        _check_keys({measure: None}, MEASURES, f"{path.name}, measures")
    _check_names(path.name, [row.name for row in rows])
    return Table(
        number=number,
        title=content["title"],
        section=str(content["section"]),
        size=size,
        kind=kind,
        measures=measures,
        rows=tuple(rows),
        content=content,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise TableError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise TableError(f"{path}: expected KEY: value pairs, found {type(content).__name__}")
    return content


def _row(
    file: str, table: Mapping[str, Any], of_size: Mapping[str, Any], size: str, row: dict[str, Any]
) -> Row:
    where = f"{file}, row {row.get('name')!r}"
    _check_keys(row, (*_ROW_KEYS, *_LAYER_KEYS, *_DESCRIBED, FEW_LABELS), where)
    name, paper = row["name"], row.get("paper", {})
    if row.get("quoted"):
        return Row(name, name, paper, quoted=True)
    own = row.get(size) or {}
    _check_keys(own, _SIZE_ROW_KEYS, f"{where}, {size}")
    layers = [table.get("common") or {}, of_size.get("common") or {}, row, own]
    without_pretraining = any(layer.get("pretrain") == "none" for layer in layers)
    finetune = _merged(layers, "finetune")
    targets = []
    for target_name, target in of_size["targets"].items():
        _check_keys(target, ("config", "set", "paper"), f"{where}, target {target_name!r}")
        overrides = {**finetune, **target.get("set", {})}
        if without_pretraining:
            overrides["TRAIN.CHECKPOINT_FILE_PATH"] = ""
        overrides |= own.get("targets", {}).get(target_name, {})
        config = own.get("config", target["config"])
        targets.append(Target(target_name, config, overrides, target.get("paper", target_name)))
    _check_keys(own.get("targets", {}), [target.name for target in targets], f"{where}, targets")
    return Row(
        name=name,
        label=own.get("label", name),
        paper=paper,
        pretrain=() if without_pretraining else tuple(of_size["pretrain"]),
        pretrain_overrides={} if without_pretraining else _merged(layers, "pretrain"),
        targets=tuple(targets),
        **{name: own.get(name, False) for name in RATIOS},
    )


def _with_few_labels(row: Row, file: str, own: Mapping[str, Any]) -> Row:
    changes = _read(TABLES / "_few_labels.yaml")
    _check_keys({t.name: t for t in row.targets}, changes, f"_few_labels.yaml, row {row.name!r}")
    where = f"{file}, row {row.name!r}, {FEW_LABELS}"
    _check_keys(own, ("targets",), where)
    more = own.get("targets", {})
    _check_keys(more, [target.name for target in row.targets], f"{where}, targets")
    targets = (
        replace(t, overrides=t.overrides | changes[t.name] | more.get(t.name, {}))
        for t in row.targets
    )
    return replace(row, targets=tuple(targets))


def _merged(layers: list[Mapping[str, Any]], stage: str) -> Overrides:
    """Overrides of a stage: each layer's for both stages, then its own; later layers win."""
    merged: Overrides = {}
    for layer in layers:
        own = layer.get(stage) or {}
        merged |= {**(layer.get("both") or {}), **({} if own == "none" else own)}
    return merged


def _check_keys(found: Mapping[str, Any], known: Any, where: str) -> None:
    for key in found:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known: {', '.join(known)}"
            raise TableError(f"{where}: unknown key {key!r}{hint}")


def _check_names(file: str, names: list[str]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise TableError(f"{file}: rows share the name {', '.join(map(repr, sorted(twice)))}")
