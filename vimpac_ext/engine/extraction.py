"""Makes the token stores that a configuration trains and tests on."""

import logging
from pathlib import Path

from vimpac_ext.config import ConfigError, LoadedConfig
from vimpac_ext.engine.assembly import build_dataset, build_tokenizer, device_of, views_of
from vimpac_ext.engine.requirements import require_data
from vimpac_ext.tasks.extract_tokens import ExtractionSummary, extract

_logger = logging.getLogger(__name__)


def extract_stores(loaded: LoadedConfig) -> dict[str, ExtractionSummary]:
    """Extracts TRAIN.TOKEN_STORE and TEST.TOKEN_STORE, as far as the configuration uses them.

    What is in a store already is not done again, so a killed extraction continues.

    Args:
        loaded: from `vimpac_ext.engine.prepare`.

    Returns:
        Phase ("TRAIN", "TEST") -> what was done.

    Raises:
        ConfigError: if the configuration names no token store.
        MissingInputError: if a data set is not there.
        VideoDecodeError: for a bad video, if DATA.ON_BAD_VIDEO is "error".
    """
    cfg = loaded.cfg
    phases = [
        phase
        for phase in ("TRAIN", "TEST")
        if cfg[phase].ENABLE and cfg[phase].TOKEN_STORE and cfg[phase].DATASET.NAME
    ]
    if not phases:
        raise ConfigError(f"{loaded.path} names no TRAIN.TOKEN_STORE or TEST.TOKEN_STORE to make")
    require_data(loaded)
    device = device_of(cfg)
    tokenizer = build_tokenizer(cfg)
    summaries = {}
    for phase in phases:
        dataset = build_dataset(cfg, phase)
        summary = extract(
            dataset.records,
            tokenizer,
            Path(cfg[phase].TOKEN_STORE),
            cfg.DATA.TARGET_FPS,
            views_of(cfg, phase),
            annotation_fingerprint=dataset.fingerprint,
            batch_size=cfg.EXTRACT.BATCH_SIZE,
            device=device,
            precision=cfg.EXTRACT.PRECISION,
            num_workers=cfg.EXTRACT.NUM_WORKERS,
            on_bad_video="error" if cfg.DATA.ON_BAD_VIDEO == "error" else "skip",
        )
        _logger.info("%s: %s", cfg[phase].TOKEN_STORE, describe(summary))
        summaries[phase] = summary
    return summaries


def describe(summary: ExtractionSummary) -> str:
    """One line for the log: videos, frames, failures, rate, where the time went."""
    text = (
        f"{summary.num_videos} videos, {summary.num_already_done} done before, "
        f"{summary.num_extracted} extracted now ({summary.num_frames} frames in "
        f"{summary.seconds:.1f} s, {summary.frames_per_second:.0f} frames/s; decoding threads "
        f"{summary.decode_seconds:.1f} s, tokenizer {summary.tokenizer_seconds:.1f} s), "
        f"{len(summary.bad_videos)} failed"
    )
    for bad in summary.bad_videos:
        text += f"\n  {bad.video_id}: {bad.reason}"
    return text
