"""Every extension point of the library, one registry each, with its contract.

Register a component from anywhere with a decorator, then name it in a config::

    from vimpac_ext.registries import MASKERS

    @MASKERS.register()
    class CheckerboardMasker: ...

A component's options are its constructor's keyword arguments. A config section is ``NAME`` (the
registered class) plus lower-case keyword arguments. See `vimpac_ext.build.build` for how runtime
arguments (token grid, vocabulary size, number of classes) are added.
"""

from fvcore.common.registry import Registry


def _registry(name: str, contract: str) -> Registry:
    registry = Registry(name)
    registry.__doc__ = contract
    return registry


DATASETS = _registry(
    "DATASETS",
    """Annotation files -> a list of videos.

    ``Dataset(root: str, split: str, ...)`` with attributes ``records: list[VideoRecord]``,
    ``class_names: list[str]`` (empty when unlabelled, or when only numbers are known) and
    ``fingerprint: str`` (hash of what was read). Reads annotations only, never a video. Errors name
    the file and the line or key.
    """,
)

TOKENIZERS = _registry(
    "TOKENIZERS",
    """Frames <-> discrete tokens; an ``nn.Module``, frozen, in eval mode.

    ``encode(frames: float (N, 3, H, W) in [0, 1]) -> int64 (N, H/stride, W/stride)`` and
    ``decode(tokens: int64 (N, h, w)) -> float (N, 3, h*stride, w*stride) in [0, 1]`` where it can.
    Attributes: ``vocab_size: int``, ``stride: int``, ``fingerprint: str`` (name and hash of the
    weights); optional ``precision: str``, "fp32" or "bf16", which extraction sets and ``encode``
    obeys (else it runs under autocast).
    """,
)

MASKERS = _registry(
    "MASKERS",
    """Chooses the tokens to hide.

    ``masker(tokens: int64 (B, T, H, W), generator: torch.Generator | None) -> bool (B, T, H, W)``,
    True = hidden. Vectorised over clips, on the device of ``tokens``. PAD is excluded by the
    caller. Runtime arguments on request: ``grid: tuple[int, int, int]``, ``vocab_size: int``.

    Optional, for a masker whose mask is made of parts (BERT noise per block is decided by part):
    ``blocks(tokens, generator) -> bool (B, K, T, H, W)``, the K parts of the mask.

    Optional, for speed, and in the class that defines ``__call__`` and ``blocks``: an attribute
    ``ignores_tokens = True``, if only the shape and device of ``tokens`` matter and, at most, where
    PAD is; then tokens that a GPU makes in the step need not be waited for. And ``draw(tokens,
    generator) -> (B, ...)``, the random numbers of each clip, for which only shape and device of
    ``tokens`` matter, with ``mask_of(drawn, tokens)`` (and ``blocks_of``), what follows from those
    of some clips; then a process of many makes only the masks of its own clips.
    """,
)

BACKBONES = _registry(
    "BACKBONES",
    """Clip -> features; an ``nn.Module``.

    Attributes: ``input_kind`` ("tokens" or "pixels", of the class: it decides which data are
    opened before a model is built) and ``embed_dim: int``.
    ``forward(clip) -> {"cls": (B, D), "features": (B, t, h, w, F)}``; "features" may be absent, and
    F is D unless an attribute ``feature_dim: int`` says otherwise.
    A token backbone takes int64 (B, T, H, W) and exposes ``token_embedding: nn.Embedding``; a pixel
    backbone takes float (B, 3, T, H, W) in [0, 1] and normalises itself (base: `PixelBackbone`).
    Optional: ``num_layers: int`` N and ``layer_of(name: str) -> int``, the layer of a parameter of
    that name in the backbone, 0 (embedding) to N + 1 (after the layers), for SOLVER.LAYER_DECAY;
    ``layers: nn.ModuleList``, modules called one after the other, whose weights TRAIN.PARALLEL fsdp
    gathers one at a time; a property where a wrapped model has them under another name.
    Runtime arguments on request: ``grid: tuple[int, int, int]`` (frames, height and width in
    tokens), ``clip_size: tuple[int, int, int]`` (in frames and pixels), ``vocab_size: int``.
    """,
)

HEADS = _registry(
    "HEADS",
    """Backbone outputs -> predictions; an ``nn.Module``.

    ``forward(outputs: dict) -> dict``: reads keys such as "cls", "features", "mask" and
    "mask_positions" (where the flattened mask is True, int64 (M,)), returns its own new keys
    (documented in its docstring). Runtime arguments on request: ``embed_dim``, ``feature_dim``
    (the width of "features"), ``grid`` (frames, height and width in tokens), ``vocab_size``,
    ``num_classes``, ``token_embedding``, ``classifier`` (the backbone's own).
    """,
)

LOSSES = _registry(
    "LOSSES",
    """Predictions and targets -> a scalar; an ``nn.Module`` without parameters.

    ``forward(outputs: dict, targets: dict) -> float32 scalar``. Pure. The attribute ``weight``
    scales it in the total.
    """,
)

TASKS = _registry(
    "TASKS",
    """What one training step does; an ``nn.Module`` that owns the model.

    ``training_step(batch: dict, generator: torch.Generator) -> dict[str, scalar tensor]``; the key
    "loss" is what the trainer minimises, the others are logged. ``predict(clips) -> (B, classes)``
    probabilities where the task can be tested. Built components are given on request by
    parameter name: ``backbone``, ``heads``, ``losses``, ``masker``, ``tokenizer``. A task knows
    masks, models and losses; it knows no loop.

    Optional: ``prepare(batch, generator) -> dict[str, tensor]``, called with the batch in main
    memory; what it gives is added to the batch. There belongs what decides shapes, such as masks.
    Also ``encode(clips) -> dict``, the backbone's outputs for clips as the data give them, and
    ``classify(outputs) -> (B, classes)``; ``predict`` is then the one after the other.
    """,
)

ALL_REGISTRIES: dict[str, Registry] = {
    "DATASETS": DATASETS,
    "TOKENIZERS": TOKENIZERS,
    "MASKERS": MASKERS,
    "BACKBONES": BACKBONES,
    "HEADS": HEADS,
    "LOSSES": LOSSES,
    "TASKS": TASKS,
}
