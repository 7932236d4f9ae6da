"""Shows what a pre-trained model fills in where tokens of real clips are hidden."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from vimpac_ext.build import wants
from vimpac_ext.config import ConfigError, LoadedConfig
from vimpac_ext.data import SpatialView, open_record
from vimpac_ext.data.clip_sampler import ClipSampler, item_generator
from vimpac_ext.engine.assembly import (
    build_dataset,
    build_task,
    build_tokenizer,
    device_of,
    views_of,
)
from vimpac_ext.engine.checkpoint import find_checkpoint, load_model
from vimpac_ext.engine.requirements import MissingInputError, require_data
from vimpac_ext.maskers import corrupt
from vimpac_ext.registries import TASKS
from vimpac_ext.structures import VideoRecord
from vimpac_ext.tasks.objective import apply_heads
from vimpac_ext.tasks.pretrain import PretrainTask
from vimpac_ext.visualization import (
    Reconstruction,
    draw_reconstructions,
    fill_hidden,
    grey_out,
    save_image,
    to_images,
)

_logger = logging.getLogger(__name__)


def visualize(
    loaded: LoadedConfig, picture: Path, videos: Sequence[str] = (), seed: int = 0
) -> list[Reconstruction]:
    """Draws the middle clip of each video, masked and completed by the newest checkpoint.

    Args:
        loaded: configuration of a pre-training, from `vimpac_ext.engine.prepare`.
        picture: PNG file to write.
        videos: files; none = the first video of TRAIN.DATASET.
        seed: of the masks.

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
    device = device_of(cfg)
    checkpoint = _checkpoint(loaded)
    records = [VideoRecord(video, Path(video).name) for video in videos] or [_first_video(loaded)]
    view = _view(cfg)
    clips = [read_clip(record, view, cfg) for record in records]
    tokenizer: Any = build_tokenizer(cfg).to(device)
    if not hasattr(tokenizer, "decode"):
        raise ConfigError(f"{loaded.path}: {cfg.TOKENIZER.NAME} cannot draw tokens (no decode)")
    task = cast(PretrainTask, build_task(cfg))  # or one with the same parts
    load_model(checkpoint, task, {"tokenizer_fingerprint": tokenizer.fingerprint})
    task.to(device).eval()
    _logger.info("model of %s, view %s", checkpoint, view.name)

    generator = torch.Generator(device).manual_seed(seed)
    reconstructions = []
    for record, frames in zip(records, clips, strict=True):
        reconstruction = reconstruct(
            record.video_id, frames.to(device), cfg.DATA.NUM_FRAMES, tokenizer, task, generator
        )
        _logger.info(
            "%s: %.1f %% of the tokens hidden, %.1f %% of these predicted right",
            reconstruction.title,
            100 * reconstruction.mask_ratio,
            100 * reconstruction.accuracy,
        )
        reconstructions.append(reconstruction)
    save_image(picture, draw_reconstructions(reconstructions))
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
        ValueError: if the tokenizer has no decoder.
        ConfigError: if no head predicts tokens.
    """
    num_real = len(frames)
    real = tokenizer.encode(frames)  # (N, h, w)
    tokenized = tokenizer.decode(real)
    padding = real.new_full((num_frames - num_real, *real.shape[1:]), task.special.pad)
    tokens = torch.cat([real, padding])
    mask, completed = complete_tokens(task, tokens, generator)
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
    task: PretrainTask, tokens: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hides tokens of one clip and puts the likeliest ones in their place.

    Args:
        task: with a masker, a backbone and a head for tokens, in eval mode.
        tokens: int64 (T, h, w), padding included.
        generator: source of the mask.

    Returns:
        The mask, bool (T, h, w), and the completed tokens, int64 (T, h, w).

    Raises:
        ConfigError: if no head predicts tokens.
    """
    assert task.masker is not None
    clip = tokens[None]
    hidden, mask = corrupt(clip, task.masker(clip, generator), task.special)
    outputs = apply_heads(task.heads, {**task.backbone(hidden), "mask": mask})
    if "token_logits" not in outputs:
        names = ", ".join(type(head).__name__ for head in task.heads.values())
        raise ConfigError(f"HEADS ({names}) has none that predicts tokens, such as MaskedTokenHead")
    # Only codes have a picture: a mask or pad id is no answer.
    codes = outputs["token_logits"][:, : task.special.vocab_size].argmax(dim=-1)
    return mask[0], fill_hidden(clip, mask, codes)[0]


def read_clip(record: VideoRecord, view: SpatialView, cfg: CfgNode) -> Tensor:
    """The middle clip of a video: float (N, 3, S, S) in [0, 1]; N <= DATA.NUM_FRAMES.

    Raises:
        VideoDecodeError: if the video is missing or broken.
    """
    sampler = ClipSampler(
        mode="uniform",
        num_views=1,
        num_frames=cfg.DATA.NUM_FRAMES,
        sampling_rate=cfg.DATA.SAMPLING_RATE,
        single_frame=cfg.DATA.SINGLE_FRAME,
    )
    with open_record(record) as reader:
        video_frames = reader.num_frames_at(cfg.DATA.TARGET_FPS)
        [(_, indices)] = sampler.clips(video_frames, item_generator(0, 0, 0))
        images = view(reader.frames_at(cfg.DATA.TARGET_FPS, indices.tolist()))
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def _view(cfg: CfgNode) -> SpatialView:
    """The first view of DATA.TRAIN_VIEWS that shows the centre unflipped, or else the first."""
    views = views_of(cfg, "TRAIN")
    return next((view for view in views if view.crop == "center" and not view.flip), views[0])


def _first_video(loaded: LoadedConfig) -> VideoRecord:
    require_data(loaded)
    record: VideoRecord = build_dataset(loaded.cfg, "TRAIN").records[0]
    return record


def _checkpoint(loaded: LoadedConfig) -> Path:
    folder = loaded.cfg.TEST.CHECKPOINT_FILE_PATH or loaded.cfg.OUTPUT_DIR
    try:
        return find_checkpoint(Path(folder))
    except FileNotFoundError as error:
        raise MissingInputError(
            f"{loaded.path} cannot run yet:\n  - no checkpoint in {folder!r}. Make it: "
            f"python tools/run_net.py --cfg {loaded.path}, or set TEST.CHECKPOINT_FILE_PATH"
        ) from error
