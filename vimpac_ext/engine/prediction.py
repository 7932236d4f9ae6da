"""Classes of video files by a trained model, with the views and the averaging of the test."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vimpac_ext.config import ConfigError, LoadedConfig
from vimpac_ext.data.loaders import evaluation_loader
from vimpac_ext.engine.assembly import (
    build_dataset,
    build_task,
    build_test_clips,
    build_tokenizer,
)
from vimpac_ext.engine.checkpoint import load_model
from vimpac_ext.engine.devices import device_of
from vimpac_ext.engine.features import AS_BUILT
from vimpac_ext.engine.figures.clips import checkpoint_of
from vimpac_ext.engine.rng import seed_rng
from vimpac_ext.engine.tester import require_class_names
from vimpac_ext.engine.view_pass import ClipFunction, map_views
from vimpac_ext.evaluation import ensemble_views
from vimpac_ext.registries import BACKBONES
from vimpac_ext.structures import SpecialTokens, VideoRecord
from vimpac_ext.tasks.online import OnlineTokenizer

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What a model says about one video.

    Attributes:
        record: the video.
        scores: float64 (C,), the class probabilities of its views put together; None if it could
            not be decoded.
        seconds: "decode", "tokenise" (0 for frames) and "model".
        error: why it could not be decoded, "" if it could.
    """

    record: VideoRecord
    scores: NDArray[np.float64] | None
    seconds: dict[str, float] = field(default_factory=dict)
    error: str = ""

    def top(self, k: int) -> list[tuple[int, float]]:
        """The k best classes, best first, with their probabilities; the lower of equals first."""
        if self.scores is None:
            return []
        best = np.argsort(-self.scores, kind="stable")[:k]
        return [(int(label), float(self.scores[label])) for label in best]


class Predictor:
    """A trained classifier for video files that are in no data set.

    Views, averaging and precision are those of the configuration's test, so the scores of a video
    are those that the test gives it. A backbone for tokens gets them from the configured
    tokenizer, in the precision of the extraction; no token store is needed.

    Args:
        loaded: from `vimpac_ext.engine.prepare`; TEST.CHECKPOINT_FILE_PATH or OUTPUT_DIR says
            where the weights are.
        class_names: the names in the order of the labels; () = those of TEST.DATASET, where its
            annotations are there.

    Attributes:
        class_names: empty if they are not known.

    Raises:
        ConfigError: if the task is no classifier, or a tokenizer is needed and none configured.
        MissingInputError: if there is no checkpoint.
        CheckpointError: if it is of another model or for other tokens.
        ValueError: if there are not as many names as classes.
    """

    def __init__(self, loaded: LoadedConfig, class_names: Sequence[str] = ()) -> None:
        cfg = loaded.cfg
        if not cfg.MODEL.NUM_CLASSES or not cfg.BACKBONE.NAME:
            raise ConfigError(
                f"{loaded.path} describes no classifier (MODEL.NUM_CLASSES is "
                f"{cfg.MODEL.NUM_CLASSES}); take the configuration of a fine-tuning"
            )
        self.class_names = list(class_names) or _known_names(cfg)
        require_class_names(self.class_names, cfg.MODEL.NUM_CLASSES)
        self.device = device_of(cfg)
        reads_tokens = getattr(BACKBONES.get(cfg.BACKBONE.NAME), "input_kind", "tokens") == "tokens"
        self._tokenize = _tokenizer(loaded) if reads_tokens else None
        frames = {"TOKENS": "online"} if reads_tokens else {}
        self.cfg = _changed(cfg, ON_BAD_VIDEO="skip", **frames)
        # Tokens are made as the extraction makes them, or as the test does that makes its own.
        stored = cfg.DATA.TOKENS == "store"
        self._token_precision = cfg.EXTRACT.PRECISION if stored else cfg.TEST.PRECISION
        seed_rng(cfg.RNG_SEED)
        # The tokenizer is called here and not within the task, so that it can be timed alone.
        self.task = build_task(_changed(cfg, TOKENS="store"))
        if not hasattr(self.task, "predict"):
            raise ConfigError(f"{loaded.path}: {cfg.TASK.NAME} does not classify (no predict)")
        if cfg.TEST.CHECKPOINT_FILE_PATH != AS_BUILT:
            checkpoint = checkpoint_of(loaded)
            facts = {}
            if self._tokenize is not None:
                facts["tokenizer_fingerprint"] = self._tokenize.tokenizer.fingerprint
            load_model(checkpoint, self.task, facts)
            _logger.info("model of %s", checkpoint)
        self.task.to(self.device).eval()

    def run(self, records: Sequence[VideoRecord]) -> Iterator[Prediction]:
        """Classifies videos one by one; a bad one gives a prediction with its error.

        Args:
            records: which videos.

        Raises:
            ValueError: if the model gives no probabilities.
        """
        clips = _Timed(build_test_clips(self.cfg, list(records)))
        workers = self.cfg.DATA_LOADER.NUM_WORKERS if len(records) > 1 else 0
        pin_memory = self.cfg.DATA_LOADER.PIN_MEMORY
        for batch in evaluation_loader(clips, 1, workers, pin_memory):
            record = records[int(batch["video_index"])]
            seconds = {"decode": float(batch["seconds"]), "tokenise": 0.0, "model": 0.0}
            if batch["error"][0]:
                yield Prediction(record, None, seconds, batch["error"][0])
                continue
            views = batch["clips"]
            if self._tokenize is not None:
                started = time.perf_counter()
                views = self._tokens(self._tokenize, views)
                seconds["tokenise"] = time.perf_counter() - started
            started = time.perf_counter()
            views = self._probabilities(views)  # on the CPU: a GPU has finished
            seconds["model"] = time.perf_counter() - started
            scores = ensemble_views(
                record.path, views[0].double().numpy(), self.cfg.DATA.ENSEMBLE_METHOD
            )
            yield Prediction(record, scores, seconds)

    def _tokens(self, tokenize: OnlineTokenizer, views: Tensor) -> Tensor:
        """(1, V*S, 3, T, H, W) frames -> int64 (1, V*S, T, h, w), few frames at a time."""
        size = max(1, self.cfg.EXTRACT.BATCH_SIZE // self.cfg.DATA.NUM_FRAMES)
        encode: ClipFunction = lambda clips: {"": tokenize(clips)}  # noqa: E731
        return map_views(encode, views, self.device, size, self._token_precision)[""]

    def _probabilities(self, views: Tensor) -> Tensor:
        """(1, V*S, ...) clips -> float32 (1, V*S, C)."""
        test = self.cfg.TEST
        predict: ClipFunction = lambda clips: {"": self.task.predict(clips)}  # noqa: E731
        return map_views(predict, views, self.device, test.BATCH_SIZE, test.PRECISION)[""]


class _Timed(Dataset):
    """Adds to each item the seconds that it took."""

    def __init__(self, clips: Any) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        started = time.perf_counter()
        item = self.clips[index]
        return {**item, "seconds": time.perf_counter() - started}


def _known_names(cfg: CfgNode) -> list[str]:
    """Names of the test data set's classes; none if its annotations are not there."""
    if not cfg.TEST.DATASET.NAME:
        return []
    try:
        return list(build_dataset(cfg, "TEST").class_names)
    except FileNotFoundError as error:
        _logger.info("classes have numbers instead of names: %s", error)
        return []


def _tokenizer(loaded: LoadedConfig) -> OnlineTokenizer:
    """The configured tokenizer, in the precision in which the test's tokens are made."""
    cfg = loaded.cfg
    if not cfg.TOKENIZER.NAME:
        raise ConfigError(
            f"{loaded.path}: {cfg.BACKBONE.NAME} reads tokens, so videos need the tokenizer that "
            "its tokens came from: set TOKENIZER.NAME"
        )
    tokenizer: Any = build_tokenizer(cfg)
    if cfg.DATA.TOKENS == "store" and hasattr(tokenizer, "precision"):
        tokenizer.precision = cfg.EXTRACT.PRECISION
    return OnlineTokenizer(tokenizer, SpecialTokens(cfg.DATA.VOCAB_SIZE))


def _changed(cfg: CfgNode, **data: str) -> CfgNode:
    """The configuration with other values in DATA."""
    derived = cfg.clone()
    derived.defrost()
    for key, value in data.items():
        derived.DATA[key] = value
    derived.freeze()
    return derived
