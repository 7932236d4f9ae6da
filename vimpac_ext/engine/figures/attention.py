"""Where CLS looks: attention over space and time of a trained VIMPAC backbone."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vimpac_ext.backbones.vimpac.axis_attention import AXES, AxisAttention, Pattern
from vimpac_ext.config import ConfigError, LoadedConfig
from vimpac_ext.engine.assembly import build_task, build_tokenizer
from vimpac_ext.engine.checkpoint import load_model
from vimpac_ext.engine.devices import device_of
from vimpac_ext.engine.figures.clips import checkpoint_of, frame_rate, read_clips
from vimpac_ext.structures import SpecialTokens
from vimpac_ext.visualization import Block, Row, overlay_heat, save_figure, to_images
from vimpac_ext.visualization.sheet import Images

_logger = logging.getLogger(__name__)

_ORIGINAL = "original;\nothers: where\nCLS looks, below\na frame its share"


@dataclass(frozen=True)
class ClsAttention:
    """Attention of CLS in one pattern of one attention block.

    CLS takes part in every row of a pattern, and its result is the mean over the rows; the shares
    are of that mean. For each head, ``tokens`` and ``itself`` add up to 1.

    Attributes:
        layer: counted from 1.
        pattern: attended axes, such as "T" or "HxW".
        tokens: float (B, heads, T, H, W).
        itself: float (B, heads), on CLS.
    """

    layer: int
    pattern: str
    tokens: Tensor
    itself: Tensor


@torch.inference_mode()
def cls_attention(backbone: nn.Module, clip: Tensor) -> list[ClsAttention]:
    """Runs a backbone and works out, from the inputs of its attention blocks, where CLS looks.

    The model computes what it always does; the attention is calculated beside it.

    Args:
        backbone: a `VimpacTransformer` in eval mode.
        clip: integer (B, T, H, W), special ids included.

    Returns:
        One for each pattern, in the order of layers, blocks and patterns.

    Raises:
        ConfigError: if the backbone is another one.
    """
    modules = _attention_modules(backbone)
    special: Any = backbone.special
    is_pad = clip == special.pad
    found: list[ClsAttention] = []

    def look(number: int, module: AxisAttention, cls: Tensor, tokens: Tensor) -> None:
        for index, pattern in enumerate(module.patterns):
            shares, itself = _attention(module, index, pattern, cls, tokens, is_pad)
            found.append(ClsAttention(number, _name(pattern), shares, itself))

    hooks = [
        module.register_forward_pre_hook(
            lambda module, inputs, number=number: look(number, module, inputs[0], inputs[1])
        )
        for number, module in modules
    ]
    try:
        backbone(clip)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def draw_attention(
    loaded: LoadedConfig, picture: Path, videos: Sequence[str] = (), layer: int = 0
) -> list[list[ClsAttention]]:
    """Draws where CLS of the newest checkpoint looks in the middle clip of each video.

    The rows of `attention_rows`; of the checkpoint's tokenizer only the encoder is needed.

    Args:
        loaded: configuration of a run with a `VimpacTransformer`, from `vimpac_ext.engine.prepare`.
        picture: PNG, GIF or MP4 file to write.
        videos: files; none = the first video of TRAIN.DATASET.
        layer: counted from 1; 0 = the last.

    Returns:
        For each video what `cls_attention` found.

    Raises:
        ConfigError: if the task has no such backbone, or the backbone no such layer.
        MissingInputError: if there is no checkpoint, or no data set to take a video of.
        CheckpointError: if the checkpoint is of another model or was trained on other tokens.
        VideoDecodeError: for a bad video.
    """
    cfg = loaded.cfg
    task = build_task(cfg)
    if not hasattr(task, "backbone"):
        raise ConfigError(f"{loaded.path}: {cfg.TASK.NAME} has no backbone to look at")
    last, _ = _attention_modules(task.backbone)[-1]
    if not 0 <= layer <= last:
        raise ConfigError(f"there is no layer {layer}: the backbone has layers 1 to {last}")
    checkpoint = checkpoint_of(loaded)
    clips = read_clips(loaded, videos)
    tokenizer: Any = build_tokenizer(cfg).to(device_of(cfg))
    load_model(checkpoint, task, {"tokenizer_fingerprint": tokenizer.fingerprint})
    task.to(device_of(cfg)).eval()
    blocks, results = [], []
    for clip in clips:
        with torch.inference_mode():
            tokens = tokenizer.encode(clip.frames)
        padding = tokens.new_full(
            (cfg.DATA.NUM_FRAMES - len(tokens), *tokens.shape[1:]),
            SpecialTokens(cfg.DATA.VOCAB_SIZE).pad,
        )
        found = cls_attention(task.backbone, torch.cat([tokens, padding])[None])
        rows = attention_rows(to_images(clip.frames), found, layer or last)
        blocks.append(Block(clip.name, cfg.DATA.NUM_FRAMES, rows))
        results.append(found)
    save_figure(picture, blocks, frame_rate(cfg))
    _logger.info("model of %s; wrote %s", checkpoint, picture)
    return results


def _attention(
    module: AxisAttention,
    index: int,
    pattern: Pattern,
    cls: Tensor,
    tokens: Tensor,
    is_pad: Tensor,
) -> tuple[Tensor, Tensor]:
    """Shares of the tokens (B, h, T, H, W) and of CLS (B, h) in pattern number ``index``."""
    query, cls_key = (
        module.qkv(cls).unflatten(-1, module.split)[..., 3 * index + part, :, :] for part in (0, 1)
    )  # (B, h, e)
    keys = module.qkv(tokens).unflatten(-1, module.split)[..., 3 * index + 1, :, :]
    scale = 1 / math.sqrt(query.shape[-1])
    scores = scale * torch.einsum("bne,bthwne->bnthw", query, keys)
    scores = scores.float().masked_fill(is_pad[:, None], -math.inf)
    cls_score = (scale * (query * cls_key).sum(-1)).float()[..., None, None, None]
    within = tuple(axis + 1 for axis in pattern)  # behind the heads
    total = torch.logaddexp(scores.logsumexp(dim=within, keepdim=True), cls_score)
    num_rows = math.prod(is_pad.shape[axis] for axis in AXES.values() if axis not in pattern)
    itself = (cls_score - total).exp().sum(dim=(-3, -2, -1)) / num_rows
    return (scores - total).exp() / num_rows, itself


def _name(pattern: Pattern) -> str:
    letters = {axis: letter for letter, axis in AXES.items()}
    return "x".join(letters[axis] for axis in pattern)


def _attention_modules(backbone: nn.Module) -> list[tuple[int, AxisAttention]]:
    """Attention blocks with the numbers of their layers, in order.

    Raises:
        ConfigError: if there are none.
    """
    layers = getattr(backbone, "layers", None)
    modules = [
        (number, module)
        for number, layer in enumerate(layers if isinstance(layers, nn.ModuleList) else [], 1)
        for module in layer.modules()
        if isinstance(module, AxisAttention)
    ]
    if not modules:
        raise ConfigError(
            f"{type(backbone).__name__} has no axis attention to look at; VimpacTransformer has"
        )
    return modules


def attention_rows(images: Images, found: Sequence[ClsAttention], layer: int) -> tuple[Row, ...]:
    """The frames, then a row for each pattern of a layer and one for the mean over all layers.

    Attention is a mean over heads; brightness is relative to the row's maximum. Below each frame
    stands its share of the attention that goes to tokens, beside each row the share that stays at
    CLS.

    Args:
        images: uint8 (N, H, W, 3); padding is left out.
        found: of a batch with this clip alone, of all layers.
        layer: counted from 1.
    """
    own = [part for part in found if part.layer == layer]
    shown = [(f"layer {layer}, along {part.pattern}", [part]) for part in own]
    shown.append(("all layers", list(found)))
    rows = [Row(_ORIGINAL, images)]
    for label, parts in shown:
        heat = torch.stack([part.tokens[0].mean(0) for part in parts]).mean(0)[: len(images)]
        itself = sum(part.itself.mean().item() for part in parts) / len(parts)
        per_frame = heat.sum(dim=(1, 2)) / heat.sum()
        rows.append(
            Row(
                f"{label}\n({itself:.0%} on CLS)",
                overlay_heat(images, heat),
                tuple(f"{share:.0%}" for share in per_frame.tolist()),
            )
        )
    return tuple(rows)
