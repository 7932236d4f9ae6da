"""Scores and features of the test videos as arrays, written with their ids and labels."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from numpy.typing import NDArray
from torch import Tensor

from vimpac_ext.config import ConfigError, LoadedConfig
from vimpac_ext.data.bad_videos import BadVideo, write_bad_videos
from vimpac_ext.engine.assembly import build_task
from vimpac_ext.engine.checkpoint import load_model
from vimpac_ext.engine.devices import device_of
from vimpac_ext.engine.features import checkpoint_to_test, encoder_of, load_backbone
from vimpac_ext.engine.requirements import require_inputs
from vimpac_ext.engine.rng import seed_rng
from vimpac_ext.engine.tester import require_class_names
from vimpac_ext.engine.view_pass import ClipFunction, ViewPass
from vimpac_ext.evaluation import count_videos, ensemble_views, identified
from vimpac_ext.evaluation.table_files import SUFFIXES, VideoTable, require_writer, write_table

_logger = logging.getLogger(__name__)

WHAT = ("scores", "features")


@dataclass(frozen=True)
class ExportSummary:
    """What was written.

    Attributes:
        table: its content.
        bad_videos: those that could not be decoded; also in ``<output>.bad_videos.jsonl``.
    """

    table: VideoTable
    bad_videos: tuple[BadVideo, ...]


def export(loaded: LoadedConfig, output: Path, what: Sequence[str] = WHAT) -> ExportSummary:
    """Writes one row for each video of TEST.DATASET: scores, features, or both in one pass.

    Scores are those of the test. Features are the backbone's "cls", averaged over the views (the
    k-NN evaluation compares those of one view). The file appears whole or not at all; an
    interrupted export starts again.

    Args:
        loaded: from `vimpac_ext.engine.prepare`. For features alone the checkpoint may have other
            heads, such as that of a pre-training.
        output: .npz or .parquet file, see `write_table`.
        what: of `WHAT`.

    Raises:
        ConfigError: if the task gives no scores or features, or there are no test videos.
        ImportError: if the file needs a package that is not installed.
        MissingInputError: if data or the checkpoint are not there.
        CheckpointError: if the checkpoint is of another model or for other tokens.
        ValueError: for another suffix, and as `ViewPass`.
        VideoDecodeError: for a bad video, if DATA.ON_BAD_VIDEO is "error".
    """
    unknown = [name for name in what if name not in WHAT]
    if unknown or not what:
        raise ValueError(f"what to export: expected some of {', '.join(WHAT)}, found {list(what)}")
    require_writer(output, SUFFIXES)
    loaded = _test_only(loaded)
    cfg = loaded.cfg
    if not (cfg.TEST.DATASET.NAME or cfg.TEST.TOKEN_STORE):
        raise ConfigError(f"{loaded.path}: TEST.DATASET says which videos to export; it is empty")
    device = device_of(cfg)
    require_inputs(loaded)
    seed_rng(cfg.RNG_SEED)
    views = ViewPass(cfg, device)
    task = build_task(cfg).to(device)
    function = _function(task, loaded, what)
    if "scores" in what:
        require_class_names(views.dataset.class_names, cfg.MODEL.NUM_CLASSES)
        checkpoint = checkpoint_to_test(cfg)
        if checkpoint is not None:
            load_model(checkpoint, task, views.facts)
            _logger.info("model of %s", checkpoint)
    else:
        load_backbone(cfg, task, views.facts)
    task.eval()
    columns, decoded = _columns(views, function)
    table = _table(views, columns, decoded)
    bad_videos = tuple(views.bad_videos.values())
    write_bad_videos(output.with_name(f"{output.name}.bad_videos.jsonl"), bad_videos)
    write_table(output, table)
    shapes = ", ".join(f"{name} {array.shape}" for name, array in columns.items())
    _logger.info("wrote %s: %s; %d not decoded", output, shapes, int((~decoded).sum()))
    return ExportSummary(table, bad_videos)


def _test_only(loaded: LoadedConfig) -> LoadedConfig:
    """The configuration of a test, whatever else it may do."""
    cfg = loaded.cfg.clone()
    cfg.defrost()
    cfg.TRAIN.ENABLE, cfg.TEST.ENABLE, cfg.KNN.ENABLE = False, True, False
    cfg.freeze()
    return replace(loaded, cfg=cfg)


def _function(task: Any, loaded: LoadedConfig, what: Sequence[str]) -> ClipFunction:
    """Clips -> what is exported, in one forward pass."""
    if "scores" in what and not (hasattr(task, "predict") and loaded.cfg.MODEL.NUM_CLASSES):
        raise ConfigError(
            f"{loaded.path}: {type(task).__name__} with MODEL.NUM_CLASSES "
            f"{loaded.cfg.MODEL.NUM_CLASSES} gives no scores; export features"
        )
    if "features" not in what:
        return lambda clips: {"scores": task.predict(clips)}
    encode = encoder_of(task, "features")
    if "scores" not in what:
        return lambda clips: {"features": encode(clips)["cls"].float()}
    if not hasattr(task, "classify"):
        raise ConfigError(
            f"{loaded.path}: {type(task).__name__} has no classify(outputs), so scores and "
            "features need an export each"
        )

    def both(clips: Tensor) -> dict[str, Tensor]:
        outputs = encode(clips)
        return {"scores": task.classify(outputs), "features": outputs["cls"].float()}

    return both


def _columns(
    views: ViewPass, function: ClipFunction
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
    """float32 (N, ...) for each name, NaN for videos that were not decoded; and bool (N,)."""
    num_videos = len(views.records)
    decoded = np.zeros(num_videos, dtype=bool)
    columns: dict[str, NDArray[np.float32]] = {}
    for videos, results in views.batches("export", function):
        for name, values in results.items():
            if name not in columns:
                columns[name] = np.full((num_videos, values.shape[-1]), np.nan, np.float32)
            for video, own in zip(videos.tolist(), values.double().numpy(), strict=True):
                columns[name][video] = _pooled(name, own, views.records[video].video_id, views.cfg)
                decoded[video] = True
    if not decoded.any():
        raise ValueError(f"none of {num_videos} videos could be decoded: there is nothing to write")
    return columns, decoded


def _pooled(
    name: str, own: NDArray[np.float64], video_id: str, cfg: CfgNode
) -> NDArray[np.float64]:
    """(V*S, ...) of one video -> (...)."""
    if name == "scores":
        return ensemble_views(video_id, own, cfg.DATA.ENSEMBLE_METHOD)
    mean: NDArray[np.float64] = own.mean(axis=0)
    return mean


def _table(
    views: ViewPass, columns: Mapping[str, NDArray[np.float32]], decoded: NDArray[np.bool_]
) -> VideoTable:
    data = views.cfg.DATA
    counts = count_videos(decoded, views.num_views, data.ON_BAD_VIDEO)
    facts = identified(views.protocol(), data.ENSEMBLE_METHOD, data.ON_BAD_VIDEO, counts)
    return VideoTable(
        video_ids=[record.video_id for record in views.records],
        labels=np.array([record.label for record in views.records], np.int64),
        decoded=decoded,
        columns=dict(columns),
        class_names=list(views.dataset.class_names),
        protocol=json.dumps(facts["protocol"], sort_keys=True),
        protocol_id=facts["protocol_id"],
    )
