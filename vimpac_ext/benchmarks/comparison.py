"""Several models, trained and tested on the demo's videos under one protocol; resumable."""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vimpac_ext.benchmarks.models import Classifier, random_clips
from vimpac_ext.benchmarks.result import machine
from vimpac_ext.config import LoadedConfig
from vimpac_ext.data.synthetic import make_demo_data
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.assembly import build_task, build_tokenizer
from vimpac_ext.engine.extraction import extract_stores
from vimpac_ext.evaluation import multiply_adds, parameter_count
from vimpac_ext.files import atomic_write, sha256_of

_logger = logging.getLogger(__name__)

Row = dict[str, Any]

TITLES = {  # config -> how the table calls it
    "vimpac": "VIMPAC, pre-trained",
    "vimpac_scratch": "VIMPAC, from scratch",
    "r2plus1d": "R(2+1)D",
    "frames": "ViT, frame by frame",
    "space_time": "ViT, space-time",
}
PRETRAIN = "vimpac_pretrain"
_UNLABELLED_TOKENS, _TOKENS = "tokens_unlabelled", "tokens_labelled"
# Some models read tokens, others pixels; all else of the protocol must be the same.
_MAY_DIFFER = ("tokenizer",)


class ProtocolError(ValueError):
    """Results that may not stand in one table."""


def compare(
    configs: Path, output: Path, seeds: Sequence[int], make_data: Callable = make_demo_data
) -> list[Row]:
    """Trains and tests every model with every seed; what is done is not done again.

    A seed decides the videos, the initial weights and the order of the clips.

    Args:
        configs: folder with ``<name>.yaml`` for the names in `TITLES`, and `PRETRAIN`.
        output: folder of all runs, ``seed_<seed>/<name>``.
        seeds: at least one.
        make_data: writes the videos: ``make_data(folder, seed=seed)``.

    Returns:
        One row for each seed and model: "model", "title", "seed", "parameters" (millions),
        "gflops" (10^9 multiply-adds of a clip, the tokenizer's included), "tokenizer_gflops",
        "temporal_views", "spatial_crops", "seconds" (training and test), "seconds_before"
        (tokens and pre-training), "top1" and "top5" (percent), "test_videos", "threads",
        "processor" and "load_average" (when the model's test was over).

    Raises:
        ProtocolError: the configurations do not test alike, or a run in ``output`` was made with
            other settings.
        FileNotFoundError: ``configs`` is no such folder.
    """
    rows = []
    for seed in seeds:
        rows += _compare_seed(configs, output / f"seed_{seed}", seed, make_data)
    return rows


def prepare_seed(
    configs: Path, folder: Path, seed: int, make_data: Callable
) -> tuple[dict[str, LoadedConfig], "Clock"]:
    """Makes videos and tokens and pre-trains, unless that is done.

    Returns:
        The configurations by name, and the clock of ``folder``.
    """
    if not (configs / f"{PRETRAIN}.yaml").is_file():
        raise FileNotFoundError(
            f"no {PRETRAIN}.yaml in {configs}: the comparison needs a checkout of the repository"
        )
    loaded = {
        name: prepare(configs / f"{name}.yaml", overrides_of(name, folder, seed))
        for name in (PRETRAIN, *TITLES)
    }
    require_same_settings(folder, loaded)
    clock = Clock(folder / "seconds.json")
    with clock.timed("videos"):
        make_data(folder / "data", seed=seed)
    for stage, name in ((_UNLABELLED_TOKENS, PRETRAIN), (_TOKENS, "vimpac")):
        once(folder, clock, stage, partial(extract_stores, loaded[name]))
    once(folder, clock, PRETRAIN, partial(run, loaded[PRETRAIN]))
    return loaded, clock


def _compare_seed(configs: Path, folder: Path, seed: int, make_data: Callable) -> list[Row]:
    loaded, clock = prepare_seed(configs, folder, seed, make_data)
    rows, protocols = [], {}
    for name in TITLES:
        where = once(folder, clock, name, partial(run, loaded[name]))
        result = json.loads((folder / name / "test" / "result.json").read_text())
        protocols[name] = result["protocol"]
        measured = _measured(loaded[name], clock.seconds)
        accuracies = {key: result[key] for key in ("top1", "top5")}
        videos = {"test_videos": result["protocol"]["scored_videos"]}
        first = {"model": name, "title": TITLES[name], "seed": seed}
        seconds = {"seconds": clock.seconds[name]}
        rows.append({**first, **measured, **seconds, **accuracies, **videos, **where})
    require_one_protocol(protocols)
    return rows


def require_one_protocol(protocols: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ProtocolError unless all tests had the same videos, clips and views."""
    first, *others = protocols
    for name in others:
        keys = {*protocols[first], *protocols[name]} - {*_MAY_DIFFER}
        different = [
            f"{key} {protocols[first].get(key)!r} and {protocols[name].get(key)!r}"
            for key in sorted(keys)
            if protocols[first].get(key) != protocols[name].get(key)
        ]
        if different:
            raise ProtocolError(
                f"{first} and {name} were not tested alike, so they do not belong in one table: "
                f"{', '.join(different)}"
            )


class Clock:
    """Seconds of each stage, added up over interrupted runs.

    Args:
        path: JSON file, read and kept up to date.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to a stage's."""
        _logger.info("--- %s", stage)
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = self.seconds.get(stage, 0.0) + time.perf_counter() - start
            self.seconds[stage] = round(spent, 1)
            with atomic_write(self.path) as file:
                json.dump(self.seconds, file)


def once(folder: Path, clock: Clock, stage: str, work: Callable[[], Any]) -> Row:
    """Does the work of a stage unless it is done; returns on what it was done."""
    done = folder / f"{stage}.done.json"
    if done.is_file():
        _logger.info("--- %s: done before", stage)
        where: Row = json.loads(done.read_text())
        return where
    with clock.timed(stage):
        work()
    found = machine()
    where = {key: found[key] for key in ("processor", "load_average")}
    where["threads"] = torch.get_num_threads()
    with atomic_write(done) as file:
        json.dump(where, file)
    return where


def overrides_of(name: str, folder: Path, seed: int) -> list[str]:
    """The demo's configs with this seed, below this folder."""
    values: dict[str, Any] = {
        "OUTPUT_DIR": folder / name,
        "DATA.PATH_TO_DATA_DIR": folder / "data",
        "RNG_SEED": seed,
    }
    if name.startswith("vimpac"):
        tokens = folder / "tokens"
        values["TRAIN.TOKEN_STORE"] = tokens / ("unlabelled" if name == PRETRAIN else "train")
        if name != PRETRAIN:
            values["TEST.TOKEN_STORE"] = tokens / "validation"
    if name == "vimpac":
        values["TRAIN.CHECKPOINT_FILE_PATH"] = folder / PRETRAIN
    return [str(word) for pair in values.items() for word in pair]


def require_same_settings(folder: Path, loaded: Mapping[str, LoadedConfig]) -> None:
    """Refuses to go on with a folder whose runs have other settings."""
    path = folder / "settings.json"
    # Where the folder lies makes no difference.
    settings = {
        name: sha256_of(re.sub(re.escape(str(folder)), "FOLDER", config.cfg.dump()))
        for name, config in loaded.items()
    }
    before = {}
    if path.is_file():
        before = json.loads(path.read_text())
        changed = [name for name in settings if before.get(name, settings[name]) != settings[name]]
        if changed:
            raise ProtocolError(
                f"{folder} has runs of {', '.join(changed)} with other settings: choose another "
                "--output, or delete that folder"
            )
    with atomic_write(path) as file:
        json.dump({**before, **settings}, file, indent=2)


def _measured(loaded: LoadedConfig, seconds: Mapping[str, float]) -> Row:
    """What a row says besides the result."""
    task = build_task(loaded.cfg)
    clip = random_clips(loaded, task.backbone.input_kind, 1, torch.device("cpu"))
    model = multiply_adds(Classifier(task), clip) / 1e9
    tokens = _tokenizer_gflops(loaded) if task.backbone.input_kind == "tokens" else 0.0
    before = [_TOKENS] if tokens else []
    if loaded.cfg.TRAIN.CHECKPOINT_FILE_PATH:
        before += [_UNLABELLED_TOKENS, PRETRAIN]
    return {
        "parameters": round(parameter_count(task) / 1e6, 4),
        "gflops": round(model + tokens, 5),
        "tokenizer_gflops": round(tokens, 5),
        "temporal_views": loaded.cfg.TEST.NUM_ENSEMBLE_VIEWS,
        "spatial_crops": loaded.cfg.TEST.NUM_SPATIAL_CROPS,
        "seconds_before": round(sum(seconds[stage] for stage in before), 1),
    }


def _tokenizer_gflops(loaded: LoadedConfig) -> float:
    frames = random_clips(loaded, "pixels", 1, torch.device("cpu"))[0].transpose(0, 1)
    return multiply_adds(_Encoder(build_tokenizer(loaded.cfg)), frames) / 1e9


class _Encoder(nn.Module):
    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, frames: Tensor) -> Tensor:
        return self.tokenizer.encode(frames)
