"""k-NN classification with the backbone's features, of a pre-training or of a checkpoint."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import Subset

from vimpac_ext.config import ConfigError
from vimpac_ext.data import FrameClips, TokenClips
from vimpac_ext.data.loaders import evaluation_loader
from vimpac_ext.engine.assembly import build_clips, build_dataset, build_task, data_facts
from vimpac_ext.engine.features import Encoder, encoder_of, load_backbone
from vimpac_ext.engine.rng import seed_rng
from vimpac_ext.engine.view_pass import without_tokens
from vimpac_ext.evaluation import knn_accuracy
from vimpac_ext.files import atomic_write

_logger = logging.getLogger(__name__)


class KnnMonitor:
    """Classifies the videos of KNN.TEST by their neighbours among those of KNN.TRAIN.

    A video is one clip of its center view: with KNN.CLIP "middle" always the one in its middle;
    with "random", as the authors do it, another one each time, of both parts. The feature is the
    backbone's "cls". Clips are stored tokens, or frames where the task reads frames.

    Args:
        cfg: configuration.
        device: where the forward passes run.
        task: what is going to be trained, or was.

    Raises:
        ConfigError: the task has no backbone, or a key that its clips need is empty.
        ValueError: the token stores are not what the configuration says, videos are missing in
            them and DATA.ON_BAD_VIDEO is "error", or a video has no label.
    """

    def __init__(self, cfg: CfgNode, device: torch.device, task: Any) -> None:
        encoder_of(task, "KNN.ENABLE")
        self.cfg = cfg
        self.device = device
        self.bank = _clips(cfg, "TRAIN", task.input_kind)
        self.queries = _clips(cfg, "TEST", task.input_kind)
        labels = [record.label for clips in (self.bank, self.queries) for record in clips.records]
        self.num_classes = max(labels) + 1
        rate, trained = _rate(cfg.KNN), _rate(cfg.DATA)
        if rate != trained and cfg.DATA.SAMPLING == "rate":
            _logger.warning(
                "KNN takes %g frames a second (KNN.TARGET_FPS / KNN.SAMPLING_RATE), the model is "
                "for %g (DATA.TARGET_FPS / DATA.SAMPLING_RATE)",
                rate,
                trained,
            )

    def run(self, task: Any, update: int) -> dict[str, float]:
        """Extracts all features and classifies the queries.

        Args:
            task: its backbone gives the features, in eval mode.
            update: decides which clips are drawn if they are random.

        Returns:
            "top1_err" and "top5_err" in percent, "bank_videos" and "query_videos".
        """
        task.eval()
        encode = encoder_of(task, "KNN.ENABLE")
        bank, bank_labels = self._features(encode, self.bank, update)
        queries, query_labels = self._features(encode, self.queries, update)
        options = self.cfg.KNN
        accuracy = knn_accuracy(
            bank,
            bank_labels,
            queries,
            query_labels,
            self.num_classes,
            k=options.K,
            temperature=options.TEMPERATURE,
        )
        return {
            "top1_err": 100 - accuracy[1],
            "top5_err": 100 - accuracy[5],
            "bank_videos": len(bank),
            "query_videos": len(queries),
        }

    @torch.inference_mode()
    def _features(
        self, encode: Encoder, clips: TokenClips | FrameClips, update: int
    ) -> tuple[Tensor, Tensor]:
        """Float32 (N, D) features on the device, and int64 (N,) labels, of the decoded videos."""
        keys: Any = [(update, index) for index in range(len(clips))]
        loading = self.cfg.DATA_LOADER
        loader = evaluation_loader(
            Subset(clips, keys), self.cfg.KNN.BATCH_SIZE, loading.NUM_WORKERS, loading.PIN_MEMORY
        )
        features, labels = [], []
        enabled = self.cfg.TRAIN.PRECISION != "fp32"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            for batch in loader:
                decoded = _decoded(batch)
                if len(decoded):
                    inputs = batch["clips"][decoded].flatten(0, 1)
                    outputs = encode(inputs.to(self.device, non_blocking=True))
                    features.append(outputs["cls"].float())
                    labels.append(batch["label"][decoded])
        if not features:
            raise ValueError(f"k-NN: none of {len(clips)} videos could be decoded")
        return torch.cat(features), torch.cat(labels).to(self.device)


def evaluate_knn(cfg: CfgNode, device: torch.device, folder: Path) -> dict[str, Any]:
    """k-NN accuracy of the checkpoint to test, without training.

    Heads may be others than the checkpoint's: only its backbone counts.

    Args:
        cfg: configuration.
        device: where the forward passes run.
        folder: receives ``result.json``.

    Returns:
        The content of ``result.json``: accuracies in percent, numbers of videos, how it was done.

    Raises:
        ConfigError: as `KnnMonitor`.
        ValueError: as `KnnMonitor`.
        CheckpointError: if the checkpoint's backbone is another one, or for other tokens.
    """
    seed_rng(cfg.RNG_SEED)  # weights that no checkpoint gives do not depend on what ran before
    task = build_task(cfg).to(device)
    monitor = KnnMonitor(cfg, device, task)
    facts = data_facts(cfg, monitor.bank)
    checkpoint = load_backbone(cfg, task, facts)
    found = monitor.run(task, update=0)
    knn = cfg.KNN
    result = {
        "top1": 100 - found["top1_err"],
        "top5": 100 - found["top5_err"],
        "bank_videos": found["bank_videos"],
        "query_videos": found["query_videos"],
        "expected_bank_videos": len(monitor.bank.records),
        "expected_query_videos": len(monitor.queries.records),
        "checkpoint": str(checkpoint) if checkpoint else "as built",
        "protocol": {
            **{key.lower(): knn[key] for key in ("K", "TEMPERATURE", "CLIP", "SAMPLING_RATE")},
            "sampling": cfg.DATA.SAMPLING,
            "fps": knn.TARGET_FPS,
            "num_frames": cfg.DATA.NUM_FRAMES,
            "crop_size": cfg.DATA.TRAIN_CROP_SIZE,
            "precision": "fp32" if cfg.TRAIN.PRECISION == "fp32" else "bf16",
            "bank": dict(knn.TRAIN.DATASET),
            "queries": dict(knn.TEST.DATASET),
            "tokenizer": facts.get("tokenizer_fingerprint", "none"),
        },
    }
    with atomic_write(folder / "result.json") as file:
        json.dump(result, file, indent=2)
        file.write("\n")
    _logger.info(
        "k-NN: top-1 %.2f %%, top-5 %.2f %% of %d videos, by %d in the bank; wrote %s",
        *(result["top1"], result["top5"], found["query_videos"], found["bank_videos"]),
        folder / "result.json",
    )
    return result


def _rate(section: CfgNode) -> float:
    return float(section.TARGET_FPS / section.SAMPLING_RATE)


def _decoded(batch: dict[str, Any]) -> Tensor:
    """Positions of the videos that could be decoded; the others are logged."""
    errors = batch.get("error") or [""] * len(batch["label"])
    for reason in filter(None, errors):
        _logger.warning("left out of k-NN: %s", reason)
    return torch.tensor([i for i, reason in enumerate(errors) if not reason], dtype=torch.long)


def _clips(cfg: CfgNode, part: str, kind: str) -> TokenClips | FrameClips:
    """One clip of each video of KNN.TRAIN or KNN.TEST."""
    section = cfg.KNN[part]
    if kind == "tokens" and not section.TOKEN_STORE:
        raise ConfigError(f"KNN.{part}.TOKEN_STORE is empty, but the model reads tokens")
    if kind == "pixels" and not section.DATASET.NAME:
        raise ConfigError(f"KNN.{part}.DATASET has no NAME, but the model reads frames")
    monitored = _as_test(cfg, part)
    dataset = build_dataset(monitored, "TEST")
    mode = "random" if cfg.KNN.CLIP == "random" else "uniform"
    options = {"mode": mode, "start_rule": "linspace"}
    clips = build_clips(monitored, "TEST", kind, dataset.records, options)
    missing = without_tokens(clips)
    for index, record in enumerate(clips.records):
        if record.label < 0 and index not in missing:
            raise ValueError(f"KNN.{part}: video {record.video_id!r} has no label")
    return clips


def _as_test(cfg: CfgNode, part: str) -> CfgNode:
    """The configuration of a test on the center view of that part's videos."""
    derived = cfg.clone()
    derived.defrost()
    for key, value in cfg.KNN[part].items():
        derived.TEST[key] = value
    derived.TEST.NUM_SPATIAL_CROPS = 1
    derived.AUG.ENABLE = False
    derived.DATA.SINGLE_FRAME = False
    derived.DATA.TEST_CROP_SIZE = cfg.DATA.TRAIN_CROP_SIZE
    derived.DATA.TARGET_FPS = cfg.KNN.TARGET_FPS
    derived.DATA.SAMPLING_RATE = cfg.KNN.SAMPLING_RATE
    derived.freeze()
    return derived
