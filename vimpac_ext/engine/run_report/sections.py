"""The sections of a report on one run; each says so where the run has nothing for it."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vimpac_ext.data.bad_videos import BadVideo
from vimpac_ext.engine.environment import ENVIRONMENT_FILE
from vimpac_ext.engine.run_report.run_folder import PICTURES, RunFolder, library_defaults
from vimpac_ext.visualization import curve_names, draw_curves, html, line_styles, png_of
from vimpac_ext.visualization.run_files import Series

_ABSENT = "(not set)"
_MEBIBYTE = 2**20
_PANEL_DPI = 100
_TOLD = ("hardware", "processes", "python", "command")  # of an environment, where it has them
_FIRST_BYTES = {
    "image/png": rb"\x89PNG\r\n\x1a\n",
    "image/gif": rb"GIF8[79]a",
    "image/jpeg": rb"\xff\xd8\xff",
    "video/mp4": rb".{4}ftyp",
}
_CONFUSION = "Confusion matrix of the test: a row for each true class, a column for each predicted"


def run_sections(run: RunFolder, base: Mapping[str, Any] | None, base_name: str) -> Iterator[str]:
    """HTML of all sections of a run.

    Args:
        run: what its folder holds.
        base: dotted keys of the configuration to compare with, or None.
        base_name: its file.
    """
    yield from _test(run)
    yield from _curves(run)
    yield from _pictures(run)
    yield from _per_class(run)
    yield from _bad_videos(run)
    yield from _config(run, base, base_name)
    yield from _checkpoints(run)
    yield from _versions(run)


def config_differences(
    config: Mapping[str, Any], other: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """Keys whose values differ: (key, value in ``config``, value in ``other``), sorted."""
    keys = sorted(config.keys() | other.keys())
    pairs = [(key, config.get(key, _ABSENT), other.get(key, _ABSENT)) for key in keys]
    return [(key, str(own), str(their)) for key, own, their in pairs if own != their]


def curves_pictures(runs: Mapping[str, Mapping[str, Series]]) -> Iterator[str]:
    """Curves of runs as pictures inside the page, one for each scalar; `draw_curves` says of which.

    Args:
        runs: label of a run -> name of a scalar -> (update, value).
    """
    if len(runs) > 1:
        styles = line_styles(len(runs))
        yield html.legend((label, *style) for label, style in zip(runs, styles, strict=True))
    pictures = []
    for name in curve_names(runs):
        picture = png_of(draw_curves(runs, [name], legend=False), _PANEL_DPI)
        pictures.append((picture, _curve_in_words(name, runs)))
    yield html.panels(pictures)


def _curve_in_words(name: str, runs: Mapping[str, Mapping[str, Series]]) -> str:
    parts = []
    for label, series in runs.items():
        if name in series:
            (first, start), (last, end) = series[name][0], series[name][-1]
            parts.append(f"{label}: {start:.4g} at update {first}, {end:.4g} at update {last}")
    return f"{name} over updates. {'; '.join(parts)}"


def _test(run: RunFolder) -> Iterator[str]:
    yield html.heading(3, "Test result")
    result = run.result
    if result is None:
        yield html.paragraph("Not tested: there is no test/result.json.", missing=True)
        return
    names = ("top1", "top5", "mean_class_accuracy")
    yield html.table(
        ["top-1 %", "top-5 %", "mean class accuracy %"], [[result[name] for name in names]]
    )
    yield html.heading(3, "Protocol")
    yield html.paragraph(
        f"protocol_id {result['protocol_id']}; results may be compared if it is the same."
    )
    yield html.table(["what", "value"], [(k, _plain(v)) for k, v in result["protocol"].items()])


def _curves(run: RunFolder) -> Iterator[str]:
    yield html.heading(3, "Curves")
    if run.metrics is not None:
        for scalar in run.metrics.left_out():
            yield html.paragraph(f"{scalar}: drawn without.", missing=True)
    if run.metrics is None or not run.metrics.series:
        yield html.paragraph("No curves: metrics.jsonl is missing or has no scalars.", missing=True)
        return
    yield from curves_pictures({run.label: run.metrics.series})
    rows = [
        (name, len(points), *points[-1], min(v for _, v in points), max(v for _, v in points))
        for name, points in (run.metrics.series | run.metrics.timings).items()
    ]
    yield html.table(["scalar", "values", "last update", "last", "least", "largest"], rows)


def _pictures(run: RunFolder) -> Iterator[str]:
    yield html.heading(3, "Pictures")
    if not run.pictures:
        yield html.paragraph(
            "No pictures in the folder; tools/visualize.py with --output in it makes some.",
            missing=True,
        )
    for path in run.pictures:
        name = str(path.relative_to(run.folder))
        shows = _CONFUSION if name == "test/confusion.png" else ""
        content, media_type = path.read_bytes(), PICTURES[path.suffix.lower()]
        if re.match(_FIRST_BYTES[media_type], content, re.DOTALL):
            yield html.image(content, media_type, name, shows)
        else:
            found = "is empty" if not content else f"does not begin as {media_type} does"
            yield html.paragraph(f"{name} {found}, so it is not shown.", missing=True)
    if run.other_pictures:
        names = ", ".join(str(path.relative_to(run.folder)) for path in run.other_pictures)
        yield html.paragraph(f"Not shown, only {', '.join(PICTURES)} are: {names}.")


def _per_class(run: RunFolder) -> Iterator[str]:
    yield html.heading(3, "Accuracy of each class")
    if run.per_class is None:
        yield html.paragraph("There is no test/per_class.csv.", missing=True)
        return
    yield html.table(*run.per_class)


def _bad_videos(run: RunFolder) -> Iterator[str]:
    yield html.heading(3, "Bad videos")
    if run.left_out is None:
        yield html.paragraph(
            "Training: there is no bad_videos.jsonl, which a training on video files writes when "
            "it meets videos that cannot be decoded."
        )
    else:
        text = (
            f"Training: {len(run.left_out)} videos could not be decoded; others took their places."
        )
        yield html.paragraph(text)
        yield from _bad_table(run.left_out)
    if run.undecoded is None:
        yield html.paragraph("Test: there is no test/predictions.csv.", missing=True)
    elif not run.undecoded[1]:
        yield html.paragraph("Test: all videos were decoded.")
    else:
        yield html.paragraph(f"Test: {len(run.undecoded[1])} videos were not decoded.")
        header, rows = run.undecoded
        names = ["video_id", "path", "label_name"]
        names += ["reason"] if any(row[header.index("reason")] for row in rows) else []
        columns = [header.index(name) for name in names]
        yield html.table(
            [header[column] for column in columns],
            [[row[column] for column in columns] for row in rows],
        )
    for phase in ("TRAIN", "TEST"):
        if run.config is None:
            yield html.paragraph(f"{phase}.TOKEN_STORE: not known.", missing=True)
            continue
        store = run.config.get(f"{phase}.TOKEN_STORE")
        if not store:
            yield html.paragraph(f"No {phase}.TOKEN_STORE is configured.")
            continue
        if not isinstance(store, str):
            text = f"{phase}.TOKEN_STORE ({', '.join(store)}): folders of the authors', which do "
            yield html.paragraph(f"{text}not list bad videos.", missing=True)
            continue
        if phase not in run.bad_videos:
            text = f"{phase}.TOKEN_STORE ({store}): not found, so its bad videos are not known."
            yield html.paragraph(text, missing=True)
            continue
        bad = run.bad_videos[phase]
        yield html.paragraph(f"{phase}.TOKEN_STORE ({store}): {len(bad)} bad videos.")
        yield from _bad_table(bad)


def _bad_table(bad: Sequence[BadVideo]) -> Iterator[str]:
    if bad:
        yield html.table(BadVideo._fields, bad)


def _config(run: RunFolder, base: Mapping[str, Any] | None, base_name: str) -> Iterator[str]:
    yield html.heading(3, "Configuration")
    if run.config is None:
        yield html.paragraph("There is no config.yaml: the run has not been trained.", missing=True)
        return
    if base is None:
        yield html.paragraph("Not compared with a configuration file: none was given (--base).")
    else:
        yield from _differences(run.config, base, base_name, Path(base_name).name)
    yield from _differences(run.config, library_defaults(), "the library's defaults", "default")


def _differences(
    config: Mapping[str, Any], other: Mapping[str, Any], name: str, column: str
) -> Iterator[str]:
    """Keys that differ; those that a run of an older version could not have stand apart."""
    defaults = library_defaults()
    newer = [
        key
        for key in sorted(defaults.keys() - config.keys())
        if other.get(key, _ABSENT) == defaults[key]
    ]
    rows = [row for row in config_differences(config, other) if row[0] not in newer]
    yield html.paragraph(f"{len(rows)} keys differ from {name}.")
    if rows:
        yield html.table(["key", "this run", column], rows)
    if newer:
        yield html.paragraph(
            f"{len(newer)} more keys have their defaults there and are not in the run's "
            f"config.yaml, which an earlier version wrote: {', '.join(newer)}."
        )


def _checkpoints(run: RunFolder) -> Iterator[str]:
    yield html.heading(3, "Checkpoints")
    if not run.checkpoints:
        yield html.paragraph("There are no checkpoints.", missing=True)
        return
    rows = []
    for path in run.checkpoints:
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files) / _MEBIBYTE
        rows.append((path.name, f"{size:.1f} MiB", _date(path.stat().st_mtime)))
    yield html.table(["file", "size", "written (UTC)"], rows)


def _versions(run: RunFolder) -> Iterator[str]:
    yield html.heading(3, "Hardware and versions")
    if not run.environments:
        yield html.paragraph(
            "The run's folder does not tell what it ran with (no environment.json, which runs "
            "write, and no stage.json or result.json with versions here or above).",
            missing=True,
        )
    for path, content in run.environments:
        when = ", as of the last start" if path.name == ENVIRONMENT_FILE else ""
        yield html.paragraph(f"From {path}{when}:")
        told = [(key, content[key]) for key in _TOLD if content.get(key)]
        yield html.table(["run on", "value"], [(key, str(value)) for key, value in told])
        yield html.table(["package", "version"], content["versions"].items())


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, (list, dict, bool)) else value


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
