"""Pictures from the files of runs: loss curves and confusion matrices."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vimpac_ext.engine.checkpoint_files import stage_folders
from vimpac_ext.evaluation.confusion_plot import save_confusion_plot
from vimpac_ext.visualization import (
    RunFileError,
    draw_curves,
    read_metrics,
    read_table,
    run_labels,
    save_plot,
)
from vimpac_ext.visualization.saving import require_suffix

_logger = logging.getLogger(__name__)


def draw_run_curves(
    folders: Sequence[Path], picture: Path, scalars: Sequence[str] = ()
) -> list[str]:
    """Draws the scalars of one run or several over each other.

    Args:
        folders: OUTPUT_DIRs, at least one.
        picture: PNG file to write.
        scalars: names as in ``metrics.jsonl``, such as "loss" or "train_iter/loss"; none = all
            that are curves.

    Returns:
        The labels of the runs.

    Raises:
        FileNotFoundError: if a folder has no ``metrics.jsonl``.
        RunFileError: if one cannot be read.
        ValueError: if there is no such scalar, or a folder is given twice.
    """
    require_suffix(picture, [".png"])
    # Of a run with TRAIN.STAGES the curves are those of its stages.
    folders = [one for folder in folders for one in stage_folders(folder) or [folder]]
    labels = run_labels(folders)
    runs = {}
    for label, folder in zip(labels, folders, strict=True):
        metrics = read_metrics(folder)
        runs[label] = metrics.series
        for scalar in metrics.left_out():
            _logger.warning("%s: %s; drawn without", label, scalar)
    save_plot(picture, draw_curves(runs, scalars))
    _logger.info("wrote %s", picture)
    return labels


def draw_run_confusion(folder: Path, picture: Path) -> None:
    """Draws the confusion matrix of a run's test.

    Args:
        folder: OUTPUT_DIR, or the folder ``test`` in it.
        picture: PNG file to write.

    Raises:
        FileNotFoundError: if the run has not been tested.
        RunFileError: if its ``confusion.csv`` cannot be read.
    """
    require_suffix(picture, [".png"])
    places = [folder / "test" / "confusion.csv", folder / "confusion.csv"]
    path = next((place for place in places if place.is_file()), None)
    table = read_table(path) if path else None
    if path is None or table is None:
        raise FileNotFoundError(
            f"no test result in {folder}: looked for {' and '.join(map(str, places))}. "
            "Make it: python tools/run_net.py --cfg CONFIG TRAIN.ENABLE False"
        )
    header, rows = table
    try:
        counts = np.array([[int(cell) for cell in row[1:]] for row in rows])
    except ValueError as error:
        raise RunFileError(f"{path}: a count is not a whole number: {error}") from error
    if counts.shape != (len(header) - 1, len(header) - 1):
        raise RunFileError(f"{path} has {len(rows)} rows for {len(header) - 1} classes")
    save_confusion_plot(picture, counts, header[1:])
    _logger.info("wrote %s", picture)
