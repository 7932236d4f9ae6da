"""Accuracy of a linear classifier on frozen features, over many draws of few labelled videos.

Fine-tuning with few labels says as much of the videos that happened to be labelled, and of its own
random numbers, as of the pre-training. Here the features of a model are computed once; a classifier
on them takes a fraction of a second, so that its accuracy can be averaged over many draws.
"""

import json
import logging
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor

from vimpac_ext.config import LoadedConfig
from vimpac_ext.engine.assembly import build_task
from vimpac_ext.engine.devices import device_of
from vimpac_ext.engine.features import encoder_of, load_backbone
from vimpac_ext.engine.view_pass import ViewPass
from vimpac_ext.evaluation import topk_accuracy
from vimpac_ext.files import atomic_write

FILE = "probe.json"
NUM_CLIPS = 2  # along a video, in each of its crops
LABELS_PER_CLASS = 8  # with the demo's ten motions 80 labels, as many as --few-labels leaves
DRAWS = 20
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2)  # of the penalty of the weights
_ITERATIONS = 100
_logger = logging.getLogger(__name__)


def probing_protocol() -> dict[str, Any]:
    """All that decides a result beside the configuration."""
    return {
        "clips": NUM_CLIPS,
        "labels_per_class": LABELS_PER_CLASS,
        "draws": DRAWS,
        "strengths": list(STRENGTHS),
        "iterations": _ITERATIONS,
    }


def evaluate_probe(loaded: LoadedConfig) -> dict[str, Any]:
    """Probes the backbone of TEST.CHECKPOINT_FILE_PATH, weights frozen.

    A clip is described by the averages of its frames' features, side by side, as by
    `FrameAverageHead`. Of every class of TRAIN.DATASET some videos are drawn; a linear classifier
    is fitted to their clips, and the mean of its probabilities over the clips of a video decides.
    The penalty of its weights is the one that is best, over all draws, for the videos of
    TRAIN.DATASET that were not drawn: the test videos do not decide it.

    Args:
        loaded: configuration of a fine-tuning.

    Returns:
        "top1", mean over the draws, and "top1_std" over them, in percent, with the accuracy of each
        draw and how it was done; also written to OUTPUT_DIR/probe.json.

    Raises:
        CheckpointError: if the checkpoint is of another backbone or other tokens.
        ValueError: if a class has too few videos, or a video cannot be decoded.
    """
    cfg = loaded.cfg
    bank, bank_labels = _features(_as_test(cfg))
    queries, query_labels = _features(cfg)
    generator = torch.Generator().manual_seed(cfg.RNG_SEED)
    drawn = [draw(bank_labels, LABELS_PER_CLASS, generator) for _ in range(DRAWS)]
    # Strength -> accuracy of each draw on the labelled videos that were not drawn, and on the test.
    others: dict[float, list[float]] = {}
    tested: dict[float, list[float]] = {}
    for strength in STRENGTHS:
        for chosen in drawn:
            fit = fit_linear(bank[chosen], bank_labels[chosen], cfg.MODEL.NUM_CLASSES, strength)
            others.setdefault(strength, []).append(
                accuracy(fit, bank[~chosen], bank_labels[~chosen])
            )
            tested.setdefault(strength, []).append(accuracy(fit, queries, query_labels))
    best = max(STRENGTHS, key=lambda strength: statistics.fmean(others[strength]))
    result = {
        "top1": statistics.fmean(tested[best]),
        "top1_std": statistics.stdev(tested[best]),
        "top1_of_draws": tested[best],
        "strength": best,
        "accuracy_of_strengths": {str(s): statistics.fmean(others[s]) for s in STRENGTHS},
        "labelled_videos": len(bank),
        "test_videos": len(queries),
        "width": bank.shape[-1],
        "protocol": probing_protocol(),
    }
    with atomic_write(Path(cfg.OUTPUT_DIR) / FILE) as file:
        json.dump(result, file, indent=2)
        file.write("\n")
    return result


def draw(labels: Tensor, per_class: int, generator: torch.Generator) -> Tensor:
    """Chooses as many videos of each class, at random.

    Args:
        labels: int (N,) classes.
        per_class: videos of each class that occurs.
        generator: decides which.

    Returns:
        bool (N,), True = chosen.

    Raises:
        ValueError: if a class does not have more than so many, so that none would be left.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        own = (labels == label).nonzero().flatten()
        if len(own) <= per_class:
            raise ValueError(
                f"class {label} has {len(own)} labelled videos; drawing {per_class} of each class "
                "needs at least one more, to choose the penalty with"
            )
        chosen[own[torch.randperm(len(own), generator=generator)[:per_class]]] = True
    return chosen


def fit_linear(features: Tensor, labels: Tensor, num_classes: int, strength: float) -> Any:
    """Multinomial logistic regression with penalised weights, on standardised features.

    Args:
        features: float (N, V, D), V clips of each video.
        labels: int (N,) classes.
        num_classes: C.
        strength: of the penalty, times half the squared weights, beside the mean cross-entropy.

    Returns:
        A function from float (M, V, D) to probabilities (M, V, C).
    """
    clips = features.flatten(0, 1).float()
    mean, std = clips.mean(0), clips.std(0) + 1e-6
    clips = (clips - mean) / std
    targets = labels.repeat_interleave(features.shape[1])
    weight = torch.zeros(clips.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(clips @ weight + bias, targets) + strength / 2 * weight.pow(2).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)
    return lambda other: (((other.float() - mean) / std) @ weight + bias).detach().softmax(-1)


def accuracy(fit: Any, features: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent of the mean probabilities of each video's clips."""
    scores = fit(features).mean(1)
    return topk_accuracy(scores.numpy(), labels.numpy(), ks=(1,))[1]


def _features(cfg: CfgNode) -> tuple[Tensor, Tensor]:
    """Float (N, V, T * D) features of the test videos' clips, and int (N,) classes."""
    device = device_of(cfg)
    torch.manual_seed(cfg.RNG_SEED)  # of a backbone that no checkpoint gives
    views = ViewPass(cfg, device)
    task = build_task(cfg).to(device)
    load_backbone(cfg, task, views.facts)
    task.eval()
    encode = encoder_of(task, "the probe")

    def averages(clips: Tensor) -> Mapping[str, Tensor]:
        return {"": encode(clips)["features"].float().mean(dim=(2, 3)).flatten(1)}

    found: list[Tensor] = [torch.empty(0)] * len(views.records)
    for videos, results in views.batches("features", averages):
        for video, own in zip(videos.tolist(), results[""], strict=True):
            found[video] = own
    if views.bad_videos:
        bad = next(iter(views.bad_videos.values()))
        raise ValueError(f"the probe needs every video; {bad.video_id!r}: {bad.reason}")
    labels = torch.tensor([record.label for record in views.records])
    _logger.info("features of %d videos, %d clips of each", len(found), len(found[0]))
    return torch.stack(found), labels


def _as_test(cfg: CfgNode) -> CfgNode:
    """The configuration of a test on the training videos."""
    derived = cfg.clone()
    derived.defrost()
    derived.TEST.DATASET = cfg.TRAIN.DATASET.clone()
    derived.TEST.TOKEN_STORE = cfg.TRAIN.TOKEN_STORE
    derived.DATA.TEST_CROP_SIZE = cfg.DATA.TRAIN_CROP_SIZE
    derived.freeze()
    return derived
