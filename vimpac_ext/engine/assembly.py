"""From a configuration to objects: the one place that reads config keys to build components."""

import logging
from collections.abc import Mapping
from typing import Any

from fvcore.common.config import CfgNode
from torch import nn

from vimpac_ext.build import build, check, needs, wants
from vimpac_ext.config import ConfigError, LoadedConfig
from vimpac_ext.config.defaults import COMPONENT_MAPPINGS, SECTION_REGISTRIES
from vimpac_ext.data import (
    FrameClips,
    OriginalTokens,
    SpatialView,
    StoredVideos,
    TokenClips,
    TokenStore,
    made_by_authors,
    open_tokens,
    spatial_views,
)
from vimpac_ext.data.random_views import RandomView
from vimpac_ext.engine.memory_format import channels_last
from vimpac_ext.engine.model_fit import require_partners, require_test_crop
from vimpac_ext.registries import (
    ALL_REGISTRIES,
    BACKBONES,
    DATASETS,
    HEADS,
    LOSSES,
    MASKERS,
    TASKS,
    TOKENIZERS,
)
from vimpac_ext.structures import TokenGrid, VideoRecord

_logger = logging.getLogger(__name__)

# Arguments that the program gives to a component whose constructor asks for them by name.
RUNTIME_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "DATASETS": ("root",),
    "TOKENIZERS": ("vocab_size",),
    "MASKERS": ("grid", "vocab_size"),
    "BACKBONES": ("grid", "clip_size", "vocab_size"),
    "HEADS": (
        *("embed_dim", "feature_dim", "grid", "vocab_size", "num_classes"),
        *("token_embedding", "classifier"),
    ),
    "LOSSES": (),
    "TASKS": ("backbone", "heads", "losses", "masker", "tokenizer", "vocab_size", "num_classes"),
}


def check_components(loaded: LoadedConfig) -> None:
    """Checks every component section against its class, before anything is built.

    Raises:
        BuildError: naming the section and the file.
    """
    for path, registry_name in SECTION_REGISTRIES.items():
        for name, section in _sections(loaded.cfg, path):
            if not section["NAME"]:
                continue
            runtime = RUNTIME_ARGUMENTS[registry_name]
            if "root" in section:  # a data set may live elsewhere than PATH_TO_DATA_DIR
                runtime = tuple(argument for argument in runtime if argument != "root")
            where = f"{name} in {loaded.where(name)}"
            check(ALL_REGISTRIES[registry_name], section, where, runtime)


def _sections(cfg: CfgNode, path: str) -> list[tuple[str, Mapping[str, Any]]]:
    node = cfg
    for key in path.split("."):
        node = node[key]
    if path in COMPONENT_MAPPINGS:
        return [(f"{path}.{name}", section) for name, section in node.items()]
    return [(path, node)]


def token_grid(cfg: CfgNode, crop_size: int) -> TokenGrid:
    """Tokens in a clip of the configured length and crop."""
    side = crop_size // cfg.DATA.TOKEN_STRIDE
    return TokenGrid(cfg.DATA.NUM_FRAMES, side, side)


def build_task(cfg: CfgNode) -> Any:
    """Builds the task with the components that its constructor asks for."""
    grid = token_grid(cfg, cfg.DATA.TRAIN_CROP_SIZE)
    common = {"vocab_size": cfg.DATA.VOCAB_SIZE, "num_classes": cfg.MODEL.NUM_CLASSES}
    parts: dict[str, Any] = dict(common)
    if wants(TASKS, cfg.TASK, "backbone"):
        side = cfg.DATA.TRAIN_CROP_SIZE
        parts["backbone"] = build(
            BACKBONES,
            cfg.BACKBONE,
            "BACKBONE",
            grid=grid,
            clip_size=(cfg.DATA.NUM_FRAMES, side, side),
            vocab_size=cfg.DATA.VOCAB_SIZE,
        )
        require_test_crop(cfg, parts["backbone"], token_grid(cfg, cfg.DATA.TEST_CROP_SIZE))
    if wants(TASKS, cfg.TASK, "heads"):
        parts["heads"] = _build_heads(cfg, parts["backbone"], common)
    if wants(TASKS, cfg.TASK, "losses"):
        parts["losses"] = {
            name: build(LOSSES, section, f"LOSSES.{name}") for name, section in cfg.LOSSES.items()
        }
    # Without a NAME a task that can do without a masker gets none; for others it is an error.
    if needs(TASKS, cfg.TASK, "masker") or (wants(TASKS, cfg.TASK, "masker") and cfg.MASKER.NAME):
        vocab_size = cfg.DATA.VOCAB_SIZE
        parts["masker"] = build(MASKERS, cfg.MASKER, "MASKER", grid=grid, vocab_size=vocab_size)
    online = wants(TASKS, cfg.TASK, "tokenizer") and cfg.DATA.TOKENS == "online"
    if online or needs(TASKS, cfg.TASK, "tokenizer"):
        parts["tokenizer"] = build_tokenizer(cfg)
    return channels_last(build(TASKS, cfg.TASK, "TASK", **parts), cfg.MODEL.CHANNELS_LAST)


def _build_heads(
    cfg: CfgNode, backbone: nn.Module, common: Mapping[str, Any]
) -> dict[str, nn.Module]:
    runtime = {
        **common,
        "embed_dim": backbone.embed_dim,
        "feature_dim": getattr(backbone, "feature_dim", backbone.embed_dim),
        "grid": token_grid(cfg, cfg.DATA.TRAIN_CROP_SIZE),
        "token_embedding": getattr(backbone, "token_embedding", None),
        "classifier": getattr(backbone, "classifier", None),
    }
    heads = {}
    for name, section in cfg.HEADS.items():
        if wants(HEADS, section, "num_classes") and not cfg.MODEL.NUM_CLASSES:
            raise ConfigError(f"HEADS.{name} needs MODEL.NUM_CLASSES, which is 0")
        heads[name] = build(HEADS, section, f"HEADS.{name}", **runtime)
    return heads


def build_tokenizer(cfg: CfgNode) -> nn.Module:
    """Builds the configured tokenizer (which loads its weights)."""
    tokenizer = build(TOKENIZERS, cfg.TOKENIZER, "TOKENIZER", vocab_size=cfg.DATA.VOCAB_SIZE)
    return channels_last(tokenizer, cfg.MODEL.CHANNELS_LAST)


def build_dataset(cfg: CfgNode, phase: str) -> Any:
    """Builds the data set of ``phase`` ("TRAIN" or "TEST"): annotations, no videos yet.

    Without a DATASET it is what the token store has, or what TOKEN_SPLIT_FILE lists.
    """
    section = cfg[phase].DATASET
    if not section.NAME and cfg[phase].TOKEN_STORE:
        return _stored_videos(cfg, phase)
    runtime = {} if "root" in section else {"root": cfg.DATA.PATH_TO_DATA_DIR}
    return build(DATASETS, section, f"{phase}.DATASET", **runtime)


def _stored_videos(cfg: CfgNode, phase: str) -> StoredVideos:
    tokens = open_tokens(cfg[phase].TOKEN_STORE, [view.name for view in views_of(cfg, phase)])
    labelled = None if cfg.MODEL.NUM_CLASSES or phase == "TEST" else False
    videos = StoredVideos(tokens, cfg[phase].TOKEN_SPLIT_FILE or None, labelled)
    if videos.missing:
        text = f"{len(videos.missing)} of {len(videos.records)} videos have no tokens in all views "
        text += f"of {tokens.folder} (first: {', '.join(map(repr, videos.missing[:5]))})"
        # Their labels are unknown, so they cannot be counted as wrong either.
        if cfg.DATA.ON_BAD_VIDEO != "skip":
            raise ValueError(f"{text}; DATA.ON_BAD_VIDEO skip leaves them out")
        _logger.warning("%s; they are left out", text)
    missing = set(videos.missing) if phase == "TRAIN" else ()  # a test counts them
    videos.records = [r for r in videos.records if r.video_id not in missing]
    return videos


def views_of(cfg: CfgNode, phase: str) -> tuple[SpatialView, ...]:
    """Spatial views that ``phase`` uses: DATA.TRAIN_VIEWS, or TEST.NUM_SPATIAL_CROPS."""
    if phase == "TRAIN":
        return spatial_views(cfg.DATA.TRAIN_VIEWS, cfg.DATA.TRAIN_CROP_SIZE)
    names = {1: "center", 3: "three_crops"}
    return spatial_views(names[cfg.TEST.NUM_SPATIAL_CROPS], cfg.DATA.TEST_CROP_SIZE)


def open_store(cfg: CfgNode, phase: str) -> TokenStore | OriginalTokens:
    """Opens the token store of ``phase`` and checks that it is the one the config describes.

    The authors' token folders, and stores made from them, do not say which weights their tokenizer
    had: of these only its name is compared.

    Raises:
        ValueError: if tokenizer, vocabulary, rate, grid or views differ; each is named.
    """
    crop_size = cfg.DATA.TRAIN_CROP_SIZE if phase == "TRAIN" else cfg.DATA.TEST_CROP_SIZE
    grid = token_grid(cfg, crop_size)
    views = [view.name for view in views_of(cfg, phase)]
    store = open_tokens(cfg[phase].TOKEN_STORE, views)
    store.require(
        tokenizer=cfg.TOKENIZER.NAME or None,
        tokenizer_fingerprint=(None if made_by_authors(store.meta) else _expected_fingerprint(cfg)),
        vocab_size=cfg.DATA.VOCAB_SIZE,
        stride=cfg.DATA.TOKEN_STRIDE,
        fps=cfg.DATA.TARGET_FPS,
        grid=(grid.height, grid.width),
        views=views,
    )
    return store


def _expected_fingerprint(cfg: CfgNode) -> str | None:
    """Fingerprint of the configured tokenizer, or None where its weights are not at hand.

    Training reads tokens and must not need the tokenizer's weights (a cluster may not have them);
    the name is compared in any case.
    """
    if not cfg.TOKENIZER.NAME:
        return None
    try:
        return str(build_tokenizer(cfg).fingerprint)
    except FileNotFoundError:
        return None


def build_train_clips(
    cfg: CfgNode, task: Any, records: list[VideoRecord]
) -> FrameClips | TokenClips:
    """Clips for training: tokens from the store, or frames, as the task wants."""
    require_partners(cfg, task)
    options = {"mode": task.clip_mode, "max_distance_seconds": cfg.DATA.MAX_PAIR_DISTANCE}
    options["num_random_clips"] = cfg.AUG.NUM_SAMPLE
    return build_clips(cfg, "TRAIN", task.input_kind, records, options)


def build_test_clips(cfg: CfgNode, records: list[VideoRecord]) -> FrameClips | TokenClips:
    """All views of each test video, as the backbone wants them."""
    backbone = BACKBONES.get(cfg.BACKBONE.NAME) if cfg.BACKBONE.NAME else None
    online = cfg.DATA.TOKENS == "online"
    kind = "pixels" if online else getattr(backbone, "input_kind", "tokens")
    options = {
        "mode": "uniform",
        "num_temporal_views": cfg.TEST.NUM_ENSEMBLE_VIEWS,
        "start_rule": cfg.TEST.START_RULE,
    }
    return build_clips(cfg, "TEST", kind, records, options)


def build_clips(
    cfg: CfgNode, phase: str, kind: str, records: list[VideoRecord], options: Mapping[str, Any]
) -> FrameClips | TokenClips:
    """Clips of ``kind`` "tokens" or "pixels"; ``options``: arguments of either class."""
    data = cfg.DATA
    common = {
        "num_frames": data.NUM_FRAMES,
        "sampling": data.SAMPLING,
        "sampling_rate": data.SAMPLING_RATE,
        "single_frame": data.SINGLE_FRAME,
        "seed": cfg.RNG_SEED,
        **options,
    }
    views = views_of(cfg, phase)
    if kind == "pixels":
        padding = "nan" if data.TOKENS == "online" else "last"
        return FrameClips(
            records,
            views=views,
            fps=data.TARGET_FPS,
            padding=padding,
            mark_bad=data.ON_BAD_VIDEO != "error",
            decoder=data.DECODING_BACKEND,
            random_view=_random_view(cfg) if phase == "TRAIN" and cfg.AUG.ENABLE else None,
            **common,
        )
    if cfg.AUG.ENABLE:
        raise ConfigError(
            "AUG.ENABLE True changes frames, but these clips are stored tokens: set it False, or "
            "DATA.TOKENS online"
        )
    return TokenClips(
        open_store(cfg, phase),
        records,
        views=[view.name for view in views],
        allow_missing=data.ON_BAD_VIDEO != "error",
        **common,
    )


def _random_view(cfg: CfgNode) -> RandomView:
    aug = cfg.AUG
    return RandomView(
        cfg.DATA.TRAIN_CROP_SIZE,
        scale=aug.SCALE,
        aspect=aug.ASPECT,
        flip=aug.FLIP,
        num_operations=aug.RAND_AUGMENT_OPERATIONS,
        magnitude=aug.RAND_AUGMENT_MAGNITUDE,
    )


def data_facts(cfg: CfgNode, clips: FrameClips | TokenClips) -> dict[str, str]:
    """What a checkpoint must remember of its data: weights mean nothing for other tokens."""
    if isinstance(clips, TokenClips):
        return {"tokenizer_fingerprint": clips.store.meta.tokenizer_fingerprint}
    fingerprint = _expected_fingerprint(cfg) if cfg.DATA.TOKENS == "online" else None
    return {"tokenizer_fingerprint": fingerprint} if fingerprint else {}
