"""Shows what a pre-trained model fills in where tokens of real clips are hidden."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from vimpac_ext.build import wants
from vimpac_ext.config import ConfigError, LoadedConfig
from vimpac_ext.engine.assembly import build_task
from vimpac_ext.engine.checkpoint import load_model
from vimpac_ext.engine.devices import device_of
from vimpac_ext.engine.figures.clips import (
    checkpoint_of,
    drawing_tokenizer,
    frame_rate,
    read_clips,
    training_view,
)
from vimpac_ext.maskers import corrupt
from vimpac_ext.registries import TASKS
from vimpac_ext.tasks.objective import apply_heads
from vimpac_ext.tasks.pretrain import Masker, PretrainTask, at_token_grid
from vimpac_ext.visualization import (
    Reconstruction,
    fill_hidden,
    grey_out,
    save_figure,
    to_images,
)

_logger = logging.getLogger(__name__)


def visualize(
    loaded: LoadedConfig, picture: Path, videos: Sequence[str] = (), seed: int = 0
) -> list[Reconstruction]:
    """Draws the middle clip of each video, masked and completed by the newest checkpoint.

    Args:
        loaded: configuration of a pre-training, from `vimpac_ext.engine.prepare`.
        picture: PNG, GIF or MP4 file to write.
        videos: files; none = the first video of TRAIN.DATASET.
        seed: of the mask of each video.

    Returns:
        What was drawn, one for each video.

    Raises:
        ConfigError: if the configured task, heads or tokenizer cannot do it.
        ValueError: if the tokenizer was given no decoder, or does not fit the clips.
        MissingInputError: if there is no checkpoint, or no data set to take a video of.
        CheckpointError: if the checkpoint is of another model or was trained on other tokens.
        VideoDecodeError: for a bad video.
    """
    cfg = loaded.cfg
    if not (wants(TASKS, cfg.TASK, "masker") and cfg.MASKER.NAME):
        raise ConfigError(
            f"{loaded.path}: {cfg.TASK.NAME} hides no tokens; take the configuration of a "
            "pre-training, such as configs/vimpac/demo/pretrain.yaml"
        )
    checkpoint = checkpoint_of(loaded)
    clips = read_clips(loaded, videos)
    tokenizer = drawing_tokenizer(loaded)
    task = cast(PretrainTask, build_task(cfg))  # or one with the same parts
    load_model(checkpoint, task, {"tokenizer_fingerprint": tokenizer.fingerprint})
    device = device_of(cfg)
    task.to(device).eval()
    _logger.info("model of %s, view %s", checkpoint, training_view(cfg).name)

    reconstructions = []
    for name, frames in clips:
        # For each anew: the mask of a video does not depend on those before it.
        generator = torch.Generator(device).manual_seed(seed)
        reconstruction = reconstruct(name, frames, cfg.DATA.NUM_FRAMES, tokenizer, task, generator)
        _logger.info(
            "%s: %.1f %% of the tokens hidden, %.1f %% of these predicted right",
            reconstruction.title,
            100 * reconstruction.mask_ratio,
            100 * reconstruction.accuracy,
        )
        reconstructions.append(reconstruction)
    save_figure(picture, [result.block for result in reconstructions], frame_rate(cfg))
    _logger.info("wrote %s", picture)
    return reconstructions


@torch.inference_mode()
def reconstruct(
    title: str,
    frames: Tensor,
    num_frames: int,
    tokenizer: Any,
    task: PretrainTask,
    generator: torch.Generator,
) -> Reconstruction:
    """Hides tokens of a clip and has a model predict them.

    Args:
        title: name of the clip.
        frames: float (N, 3, S, S) in [0, 1], N <= ``num_frames``; the rest is padded.
        num_frames: frames of the model's clips.
        tokenizer: encodes and decodes.
        task: with a masker, a backbone and a head for tokens, in eval mode.
        generator: source of the mask.

    Raises:
        ValueError: if the tokenizer has no decoder, or a backbone that reads pixels gives no
            features.
        ConfigError: if no head predicts tokens.
    """
    num_real = len(frames)
    real = tokenizer.encode(frames)  # (N, h, w)
    tokenized = tokenizer.decode(real)
    padding = real.new_full((num_frames - num_real, *real.shape[1:]), task.special.pad)
    tokens = torch.cat([real, padding])
    missing = frames.new_full((num_frames - num_real, *frames.shape[1:]), torch.nan)
    pixels = torch.cat([frames, missing]).transpose(0, 1)
    mask, completed = complete_tokens(task, tokens, generator, pixels=pixels)
    # Padding is neither hidden nor predicted, and has no picture.
    mask, completed = mask[:num_real], completed[:num_real]
    images = to_images(frames)
    hits = completed[mask] == real[mask]
    return Reconstruction(
        title=title,
        num_frames=num_frames,
        original=images,
        tokenized=to_images(tokenized),
        masked=grey_out(images, mask),
        completed=to_images(tokenizer.decode(completed)),
        mask_ratio=mask.float().mean().item(),
        accuracy=hits.sum().item() / max(1, len(hits)),
    )


def complete_tokens(
    task: PretrainTask,
    tokens: Tensor,
    generator: torch.Generator,
    masker: Masker | None = None,
    pixels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Hides tokens of one clip and puts the likeliest ones in their place.

    Args:
        task: with a masker, a backbone and a head for tokens, in eval mode.
        tokens: int64 (T, h, w), padding included.
        generator: source of the mask.
        masker: draws the mask; None = the task's.
        pixels: float (3, T, H, W) in [0, 1], padding NaN: what the tokens were made from. Needed
            by a backbone that reads pixels only.

    Returns:
        The mask, bool (T, h, w), and the completed tokens, int64 (T, h, w).

    Raises:
        ConfigError: if no head predicts tokens.
        ValueError: if a backbone that reads pixels gives no features.
    """
    masker = masker or task.masker
    assert masker is not None
    clip = tokens[None]
    hidden, mask = corrupt(clip, masker(clip, generator), task.special)
    if getattr(task.backbone, "input_kind", "tokens") == "pixels":
        assert pixels is not None
        # As in training: blank where tokens are hidden, and brought to the tokens' grid.
        encoded = at_token_grid(task.backbone(task.blank(pixels[None], mask)), mask.shape[1:])
    else:
        encoded = task.backbone(hidden)
    outputs = apply_heads(task.heads, {**encoded, "mask": mask})
    if "token_logits" not in outputs:
        names = ", ".join(type(head).__name__ for head in task.heads.values())
        raise ConfigError(f"HEADS ({names}) has none that predicts tokens, such as MaskedTokenHead")
    # Only codes have a picture: a mask or pad id is no answer.
    codes = outputs["token_logits"][:, : task.special.vocab_size].argmax(dim=-1)
    return mask[0], fill_hidden(clip, mask, codes)[0]
