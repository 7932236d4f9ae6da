"""One self-contained web page about one run or several."""

import logging
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vimpac_ext.config import load_config
from vimpac_ext.engine.run_report.run_folder import RunFolder, flat, read_runs, with_stages
from vimpac_ext.engine.run_report.sections import curves_pictures, run_sections
from vimpac_ext.files import atomic_write
from vimpac_ext.visualization import html

_logger = logging.getLogger(__name__)

_PACKAGES = ("vimpac_ext", "torch", "numpy", "av", "matplotlib")
_MISSING = "(not set)"


def write_run_report(
    folders: Sequence[Path], output: Path, base: str | Path | None = None
) -> list[RunFolder]:
    """Writes an HTML file that needs no other file, no server and no network.

    Args:
        folders: OUTPUT_DIRs, at least one; one of a run with TRAIN.STAGES is followed by those of
            its stages.
        output: file, replaced.
        base: configuration file to compare the runs' with.

    Returns:
        What was read of each run.

    Raises:
        FileNotFoundError: if a folder is not the OUTPUT_DIR of a run.
        RunFileError: if a file of a run cannot be read.
        ConfigError: if ``base`` is not a configuration.
        ValueError: if a folder is given twice, or there is none.
    """
    folders = with_stages(folders)
    if not folders:
        raise ValueError("give the OUTPUT_DIR of at least one run")
    base_keys = flat(load_config(base).cfg) if base is not None else None
    runs = read_runs(list(folders))
    title = f"Run {runs[0].label}" if len(runs) == 1 else f"{len(runs)} runs"
    with atomic_write(output) as file:
        file.write(html.page(title, _body(runs, base_keys, str(base))))
    _logger.info("wrote %s", output)
    return runs


def _body(runs: Sequence[RunFolder], base: dict[str, Any] | None, base_name: str) -> Iterator[str]:
    if len(runs) > 1:
        yield html.links([(f"run-{i}", run.label) for i, run in enumerate(runs, 1)])
        yield from _comparison(runs)
    for index, run in enumerate(runs, 1):
        yield html.heading(2, run.label, f"run-{index}")
        yield html.paragraph(f"Folder {run.folder}")
        yield from run_sections(run, base, base_name)
    yield html.heading(2, "This report")
    yield html.paragraph("Made with these versions, which need not be those of the runs:")
    versions = [("python", platform.python_version())]
    yield html.table(
        ["package", "version"], [*versions, *((name, _installed(name)) for name in _PACKAGES)]
    )


def _comparison(runs: Sequence[RunFolder]) -> Iterator[str]:
    yield html.heading(2, "Comparison")
    scalars = list(dict.fromkeys(n for r in runs if r.metrics for n in r.metrics.series))
    yield html.table(
        ["run", "top-1 %", "top-5 %", "mean class accuracy %", "protocol_id", "last update"],
        [_summary(run) for run in runs],
    )
    protocols = {run.result["protocol_id"] for run in runs if run.result}
    untested = [run.label for run in runs if run.result is None]
    if untested:
        yield html.paragraph(f"Not tested: {', '.join(untested)}.", missing=True)
    if len(protocols) > 1:
        yield html.paragraph(
            f"The runs were tested by {len(protocols)} different protocols; only results with the "
            "same protocol_id may be compared.",
            missing=True,
        )
    yield html.heading(3, "Last values")
    for run in runs:
        for scalar in run.metrics.left_out() if run.metrics else ():
            yield html.paragraph(f"{run.label}: {scalar}, left out here.", missing=True)
    if scalars:
        yield html.table(
            ["scalar", *(run.label for run in runs)],
            [(name, *(_last(run, name) for run in runs)) for name in scalars],
        )
        yield from curves_pictures({run.label: run.metrics.series for run in runs if run.metrics})
    else:
        yield html.paragraph("No run has scalars.", missing=True)
    yield html.heading(3, "Configuration keys that differ")
    configs = [run.config or {} for run in runs]
    without = [run.label for run in runs if run.config is None]
    if without:
        yield html.paragraph(f"Without a config.yaml: {', '.join(without)}.", missing=True)
    keys = sorted({key for config in configs for key in config})
    rows = [(key, *(str(config.get(key, _MISSING)) for config in configs)) for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    yield html.paragraph(f"{len(rows)} keys differ.")
    if rows:
        yield html.table(["key", *(run.label for run in runs)], rows)


def _summary(run: RunFolder) -> list[Any]:
    result = run.result or {}
    keys = ("top1", "top5", "mean_class_accuracy", "protocol_id")
    updates = [points[-1][0] for points in (run.metrics.series.values() if run.metrics else ())]
    return [run.label, *(result.get(key) for key in keys), max(updates, default=None)]


def _last(run: RunFolder, name: str) -> float | None:
    points = run.metrics.series.get(name) if run.metrics else None
    return points[-1][1] if points else None


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"
