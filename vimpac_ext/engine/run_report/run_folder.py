"""Everything that an OUTPUT_DIR tells about its run, read once."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vimpac_ext.config.defaults import DEFAULTS
from vimpac_ext.data.bad_videos import BadVideo, read_bad_videos
from vimpac_ext.engine.checkpoint_files import stage_folders
from vimpac_ext.engine.environment import ENVIRONMENT_FILE
from vimpac_ext.visualization import Metrics, RunFileError, read_metrics, read_result, read_table
from vimpac_ext.visualization.curves import run_labels

PICTURES = {
    ".png": "image/png",
    ".gif": "image/gif",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".mp4": "video/mp4",
}
# Files that tell of versions: a run's own, those of its test and of a table's stage, the demo's.
_ENVIRONMENT_FILES = (ENVIRONMENT_FILE, f"test/{ENVIRONMENT_FILE}", "stage.json", "result.json")
_PARENTS_WITH_VERSIONS = 2  # the demo's result.json lies two folders above its runs
_OTHER_PICTURES = (".svg", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".pdf")

Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class RunFolder:
    """What was found in an OUTPUT_DIR; None (or nothing) for what is not there.

    Attributes:
        label: short name, distinct among the runs of a report.
        folder: OUTPUT_DIR.
        config: ``config.yaml``, of the test where there was no training; dotted key -> value.
        metrics: scalars of ``metrics.jsonl``.
        result: ``test/result.json``.
        per_class: ``test/per_class.csv``.
        undecoded: rows of ``test/predictions.csv`` of videos that were not decoded, with the
            "reason" of ``test/bad_videos.jsonl``; None without the first file.
        left_out: videos that ``bad_videos.jsonl`` lists: others took their places in a training;
            None without that file.
        bad_videos: "TRAIN" and "TEST" -> videos that its token store lists as bad; a phase is
            absent if its store is not there or the authors'.
        checkpoints: files below ``checkpoints/``.
        pictures: image files and films below the folder, but not in those of its stages.
        other_pictures: likewise those of types that a report does not show.
        environments: files that tell of "versions" (package -> version), and their content.
    """

    label: str
    folder: Path
    config: dict[str, Any] | None
    metrics: Metrics | None
    result: dict[str, Any] | None
    per_class: Table | None
    undecoded: Table | None
    left_out: list[BadVideo] | None
    bad_videos: dict[str, list[BadVideo]]
    checkpoints: list[Path]
    pictures: list[Path]
    other_pictures: list[Path]
    environments: list[tuple[Path, dict[str, Any]]]


def with_stages(folders: Sequence[Path]) -> list[Path]:
    """OUTPUT_DIRs, each followed by the folders of its stages that are not given themselves."""
    given = {folder.absolute() for folder in folders}
    return [
        one
        for folder in folders
        for one in (folder, *(s for s in stage_folders(folder) if s.absolute() not in given))
    ]


def read_runs(folders: list[Path]) -> list[RunFolder]:
    """Reads OUTPUT_DIRs.

    Raises:
        FileNotFoundError: if one is no folder, or holds nothing of a run.
        RunFileError: if a file in it cannot be read.
        ValueError: if a folder is given twice.
    """
    for folder in folders:
        known = ("config.yaml", "metrics.jsonl", "test/result.json")
        if not any((folder / name).is_file() for name in known):
            raise FileNotFoundError(
                f"{folder} is not the OUTPUT_DIR of a run: it has none of {', '.join(known)}"
            )
    return [_read(*pair) for pair in zip(run_labels(folders), folders, strict=True)]


def _read(label: str, folder: Path) -> RunFolder:
    config = _config(folder / "config.yaml") or _config(folder / "test" / "config.yaml")
    return RunFolder(
        label=label,
        folder=folder,
        config=config,
        metrics=read_metrics(folder) if (folder / "metrics.jsonl").is_file() else None,
        result=read_result(folder),
        per_class=read_table(folder / "test" / "per_class.csv"),
        undecoded=_undecoded(folder / "test"),
        left_out=_listed(folder / "bad_videos.jsonl"),
        bad_videos=_bad_videos(config or {}),
        checkpoints=sorted(
            # Those of an unfinished atomic write begin with a dot.
            path
            for path in folder.glob("checkpoints/*")
            if not path.name.startswith(".")
        ),
        pictures=_files(folder, tuple(PICTURES)),
        other_pictures=_files(folder, _OTHER_PICTURES),
        environments=_environments(folder),
    )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted key -> value; empty sections vanish."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return leaves


def library_defaults() -> dict[str, Any]:
    """`DEFAULTS`, dotted key -> value."""
    return flat(DEFAULTS)


def _config(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RunFileError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise RunFileError(f"{path}: expected KEY: value pairs, found {type(tree).__name__}")
    return flat(tree)


def _undecoded(folder: Path) -> Table | None:
    """Those of a test, with the reason as last column where the test wrote one."""
    path = folder / "predictions.csv"
    found = read_table(path)
    if found is None:
        return None
    header, rows = found
    for name in ("decoded", "video_id"):
        if name not in header:
            raise RunFileError(f"{path} has no column {name!r}; it has {', '.join(header)}")
    decoded, video = header.index("decoded"), header.index("video_id")
    reasons = {bad.video_id: bad.reason for bad in _listed(folder / "bad_videos.jsonl") or ()}
    bad_rows = [row for row in rows if row[decoded] == "0"]
    return [*header, "reason"], [[*row, reasons.get(row[video], "")] for row in bad_rows]


def _bad_videos(config: Mapping[str, Any]) -> dict[str, list[BadVideo]]:
    found = {}
    for phase in ("TRAIN", "TEST"):
        store = config.get(f"{phase}.TOKEN_STORE")
        # A list is of the authors' folders, which list no bad videos.
        if not isinstance(store, str) or not (Path(store) / "meta.json").is_file():
            continue
        # A store that several machines write has one list each, and may list a video in two.
        lists = map(_listed, sorted(Path(store).glob("bad_videos*.jsonl")))
        entries = {bad.video_id: bad for listed in lists for bad in listed or ()}
        found[phase] = list(entries.values())
    return found


def _listed(path: Path) -> list[BadVideo] | None:
    if not path.is_file():
        return None
    try:
        return list(read_bad_videos(path).values())
    except (ValueError, TypeError) as error:
        raise RunFileError(f"{path} is not a list of bad videos: {error}") from error


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files below a run's folder; what its stages have belongs to the reports on them."""
    stages = set(stage_folders(folder))
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and path.is_file() and stages.isdisjoint(path.parents)
    )


def _environments(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """That of the training and, if it is another one, of the test; or else the nearest one."""
    own = [_environment(folder / name) for name in _ENVIRONMENT_FILES[:2]]
    found = [(path, content) for path, content in own if content]
    if len(found) == 2 and found[0][1] == found[1][1]:
        return found[:1]
    absolute = folder.absolute()
    names = _ENVIRONMENT_FILES[2:]
    others = (
        _environment(place / name)
        for place in (absolute, *absolute.parents[:_PARENTS_WITH_VERSIONS])
        for name in names
    )
    return found or [(path, content) for path, content in others if content][:1]


def _environment(path: Path) -> tuple[Path, dict[str, Any]]:
    """Content of a file, nothing if it is not there or has no versions."""
    if not path.is_file():
        return path, {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFileError(f"{path} is not JSON: {error}") from error
    has_versions = isinstance(content, dict) and isinstance(content.get("versions"), dict)
    return path, content if has_versions else {}
