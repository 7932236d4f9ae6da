"""Losses of a pre-trained model on videos that it has not seen: the paper's Mask-Accu. and CL-Loss.

Masks, pairs and groups are drawn as in training; the model is in eval mode.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch

from vimpac_ext.config import LoadedConfig
from vimpac_ext.data import TokenClips
from vimpac_ext.data.loaders import UpdateSampler, train_loader
from vimpac_ext.engine.assembly import build_dataset, build_task, open_store, views_of
from vimpac_ext.engine.checkpoint import find_checkpoint, load_model
from vimpac_ext.engine.devices import device_of
from vimpac_ext.files import atomic_write

FILE = "heldout.json"
_LEAST_PAIRS = 1000  # small sets are gone through several times, with other pairs and masks


def evaluate_heldout(loaded: LoadedConfig) -> dict[str, float]:
    """Evaluates TEST.CHECKPOINT_FILE_PATH on pairs of clips of TEST.DATASET.

    The last incomplete contrast group of a pass is left out, so that every group has as many
    negatives as in training.

    Args:
        loaded: configuration of pre-training with the test data set to use.

    Returns:
        Mean of every scalar of the task's step ("mask_accuracy" in percent), "videos" and "pairs";
        also written to OUTPUT_DIR/heldout.json.

    Raises:
        ValueError: if the checkpoint is of another model or other tokens, or there are fewer
            videos than a contrast group needs.
    """
    cfg = loaded.cfg
    device = device_of(cfg)
    torch.manual_seed(cfg.RNG_SEED)
    task = build_task(cfg).to(device)
    records = build_dataset(cfg, "TEST").records
    store = open_store(cfg, "TEST")
    load_model(
        find_checkpoint(Path(cfg.TEST.CHECKPOINT_FILE_PATH)),
        task,
        {"tokenizer_fingerprint": store.meta.tokenizer_fingerprint},
    )
    task.eval()
    clips = TokenClips(
        store,
        records,
        views=[view.name for view in views_of(cfg, "TEST")],
        num_frames=cfg.DATA.NUM_FRAMES,
        sampling=cfg.DATA.SAMPLING,
        sampling_rate=cfg.DATA.SAMPLING_RATE,
        mode=task.clip_mode,
        max_distance_seconds=cfg.DATA.MAX_PAIR_DISTANCE,
        seed=cfg.RNG_SEED,
        allow_missing=cfg.DATA.ON_BAD_VIDEO != "error",
    )
    group = cfg.TRAIN.MICRO_BATCH_SIZE or cfg.TRAIN.BATCH_SIZE
    passes = math.ceil(_LEAST_PAIRS / len(clips))
    sampler = UpdateSampler(len(clips), group, group, passes, cfg.RNG_SEED)
    loader = train_loader(clips, sampler, cfg.DATA_LOADER.NUM_WORKERS, False)
    generator = torch.Generator(device).manual_seed(cfg.RNG_SEED)
    total: dict[str, float] = {}
    with torch.no_grad(), torch.autocast(
        device.type, torch.bfloat16, enabled=cfg.TRAIN.PRECISION == "bf16"
    ):  # fmt: skip
        for batch in loader:
            moved = {"clips": batch["clips"].to(device)}
            for name, value in task.training_step(moved, generator).items():
                total[name] = total.get(name, 0.0) + float(value) / len(sampler)
    return _write(Path(cfg.OUTPUT_DIR), total, len(clips), len(sampler) * group)


def _write(folder: Path, means: dict[str, float], videos: int, pairs: int) -> dict[str, Any]:
    result: dict[str, Any] = {**means, "videos": videos, "pairs": pairs}
    if "mask_accuracy" in result:
        result["mask_accuracy"] *= 100
    with atomic_write(folder / FILE) as file:
        json.dump(result, file, indent=2)
        file.write("\n")
    return result
