"""k-NN classification with the backbone's features, to watch a pre-training."""

from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import Subset

from vimpac_ext.config import ConfigError
from vimpac_ext.data import TokenClips
from vimpac_ext.data.loaders import evaluation_loader
from vimpac_ext.engine.assembly import build_dataset, open_store, views_of
from vimpac_ext.evaluation import knn_accuracy


class KnnMonitor:
    """Classifies the videos of KNN.TEST by their neighbours among those of KNN.TRAIN.

    A video is one clip of its center view: with KNN.CLIP "middle" always the one in its middle;
    with "random", as the authors do it, another one each time, of both parts. The feature is the
    backbone's "cls".

    Args:
        cfg: configuration.
        device: where the forward passes run.
        task: what is going to be trained.

    Raises:
        ConfigError: the task has no backbone for tokens.
        ValueError: the token stores are not what the configuration says, videos are missing in
            them and DATA.ON_BAD_VIDEO is "error", or a video has no label.
    """

    def __init__(self, cfg: CfgNode, device: torch.device, task: Any) -> None:
        if task.input_kind != "tokens" or not hasattr(task, "backbone"):
            raise ConfigError(
                f"KNN.ENABLE is True, but {type(task).__name__} has no backbone for tokens"
            )
        self.cfg = cfg
        self.device = device
        self.bank = _clips(cfg, "TRAIN")
        self.queries = _clips(cfg, "TEST")
        labels = [record.label for clips in (self.bank, self.queries) for record in clips.records]
        self.num_classes = max(labels) + 1

    def run(self, task: Any, update: int) -> dict[str, float]:
        """Extracts all features and classifies the queries.

        Args:
            task: its ``backbone`` gives the features, in eval mode.
            update: decides which clips are drawn if they are random.

        Returns:
            "top1_err" and "top5_err" in percent, "bank_videos" and "query_videos".
        """
        task.eval()
        bank, bank_labels = self._features(task.backbone, self.bank, update)
        queries, query_labels = self._features(task.backbone, self.queries, update)
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
    def _features(self, backbone: Any, clips: TokenClips, update: int) -> tuple[Tensor, Tensor]:
        """Float32 (N, D) features on the device, and int64 (N,) labels."""
        keys: Any = [(update, index) for index in range(len(clips))]
        loading = self.cfg.DATA_LOADER
        loader = evaluation_loader(
            Subset(clips, keys), self.cfg.KNN.BATCH_SIZE, loading.NUM_WORKERS, loading.PIN_MEMORY
        )
        features, labels = [], []
        enabled = self.cfg.TRAIN.PRECISION != "fp32"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            for batch in loader:
                tokens = batch["clips"].flatten(0, 1).to(self.device, non_blocking=True)
                features.append(backbone(tokens)["cls"].float())
                labels.append(batch["label"])
        return torch.cat(features), torch.cat(labels).to(self.device)


def _clips(cfg: CfgNode, part: str) -> TokenClips:
    """One clip of each video of KNN.TRAIN or KNN.TEST."""
    monitored = _as_test(cfg, part)
    dataset = build_dataset(monitored, "TEST")
    for record in dataset.records:
        if record.label < 0:
            raise ValueError(f"KNN.{part}: video {record.video_id!r} has no label")
    return TokenClips(
        open_store(monitored, "TEST"),
        dataset.records,
        views=[view.name for view in views_of(monitored, "TEST")],
        num_frames=cfg.DATA.NUM_FRAMES,
        sampling_rate=cfg.KNN.SAMPLING_RATE,
        mode="random" if cfg.KNN.CLIP == "random" else "uniform",
        start_rule="linspace",
        seed=cfg.RNG_SEED,
        allow_missing=cfg.DATA.ON_BAD_VIDEO != "error",
    )


def _as_test(cfg: CfgNode, part: str) -> CfgNode:
    """The configuration of a test on the center view of that part's videos."""
    derived = cfg.clone()
    derived.defrost()
    for key, value in cfg.KNN[part].items():
        derived.TEST[key] = value
    derived.TEST.NUM_SPATIAL_CROPS = 1
    derived.DATA.TEST_CROP_SIZE = cfg.DATA.TRAIN_CROP_SIZE
    derived.DATA.TARGET_FPS = cfg.KNN.TARGET_FPS
    derived.freeze()
    return derived
