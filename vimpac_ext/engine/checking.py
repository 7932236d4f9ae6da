"""Checks the videos that a configuration, a data set or paths name."""

import logging
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode

from vimpac_ext.build import build
from vimpac_ext.config import ConfigError, stages_of
from vimpac_ext.data.video_check import CheckSummary, check_videos
from vimpac_ext.engine.assembly import build_dataset
from vimpac_ext.engine.launch import prepare
from vimpac_ext.engine.requirements import require_data
from vimpac_ext.plugins import import_builtin_components, import_plugins
from vimpac_ext.registries import DATASETS
from vimpac_ext.structures import VideoRecord

_logger = logging.getLogger(__name__)


def records_of_configs(
    files: Sequence[str], overrides: Sequence[str], plugins: Sequence[str]
) -> list[VideoRecord]:
    """Videos of the data sets that configurations train and test on.

    Raises:
        ConfigError: if they name no data set.
        MissingInputError: if a data set is not there.
    """
    records = []
    for file in files:
        loaded = prepare(file, overrides, plugins)
        require_data(loaded)
        seen: list[tuple[str, CfgNode]] = []  # stages mostly have the same videos
        for stage, phase in product(stages_of(loaded), ("TRAIN", "TEST")):
            used = phase, stage.cfg[phase].DATASET
            if stage.cfg[phase].ENABLE and used[1].NAME and used not in seen:
                records += build_dataset(stage.cfg, phase).records
                seen.append(used)
    if not records:
        raise ConfigError(
            f"{', '.join(map(str, files))}: no TRAIN.DATASET or TEST.DATASET to check"
        )
    return records


def records_of_dataset(
    name: str, root: str, arguments: Sequence[str], plugins: Sequence[str]
) -> list[VideoRecord]:
    """Videos of a registered data set.

    Args:
        name: such as "UCF101".
        root: its folder.
        arguments: of its constructor, such as "split=test".
        plugins: modules that register data sets.

    Raises:
        BuildError: if the data set or an argument is unknown.
        ValueError: if an argument has no "=".
    """
    import_builtin_components()
    import_plugins(plugins)
    section = {"NAME": name, "root": root}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument!r} is not of the form key=value, such as split=test")
        section[key] = yaml.safe_load(value)
    return list(build(DATASETS, section, "--dataset").records)


def check_and_report(
    records: Sequence[VideoRecord],
    output: str | Path,
    num_workers: int,
    timeout: float,
    quick: bool,
    again: bool,
) -> CheckSummary:
    """Runs `check_videos` and logs what was found and where the lists are."""
    summary = check_videos(records, output, num_workers, timeout, quick, again)
    counts = summary.as_dict()
    _logger.info(
        "%d videos (%.1f hours): %d ok, %d broken, %d timed out, %d crashed; %d known from "
        "before; %.0f s. Results in %s",
        counts["num_videos"],
        counts["video_hours"],
        counts["num_ok"],
        counts["num_broken"],
        counts["num_timeout"],
        counts["num_crash"],
        summary.num_kept,
        summary.seconds,
        output,
    )
    return summary
