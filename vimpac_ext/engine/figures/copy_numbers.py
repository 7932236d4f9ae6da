"""Copy-paste recovery over many videos, by number (paper, Appendix G.2)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vimpac_ext.config import LoadedConfig
from vimpac_ext.data import TokenClips
from vimpac_ext.data.clip_sampler import item_generator
from vimpac_ext.engine.assembly import build_dataset, build_tokenizer, open_store
from vimpac_ext.engine.devices import device_of
from vimpac_ext.engine.figures.clips import drawing_tokenizer, read_spread_clips, training_view
from vimpac_ext.engine.figures.copies import (
    RATIOS,
    copy_maskers,
    picture_errors,
    relative_error,
    usable_masks,
)
from vimpac_ext.engine.requirements import require_data
from vimpac_ext.structures import VideoRecord
from vimpac_ext.visualization import nearest_visible


@dataclass(frozen=True)
class VideoCopies:
    """How well copies do in one video against one kind of mask; means over its clips and masks.

    Attributes:
        video: name.
        masker: "uniform" or "block".
        ratio: share of the tokens that was asked for.
        hidden: share that was hidden.
        space: share of the hidden tokens whose nearest visible one in the frame is equal.
        space_time: likewise with the nearest one over all frames.
        commonest: share of a clip's tokens that are its most frequent one: what a guess without
            any neighbour would reach.
        error_space: squared error, in the hidden parts, of the pictures that the copies in the
            frame decode to, against those of the right tokens; as a share of the error of one
            colour, the mean of a clip. None without pictures.
        error_space_time: likewise of the copies over all frames.
        clips: number of clips.
        masks: number of masks, of all clips together, that hid something but not everything.
    """

    video: str
    masker: str
    ratio: float
    hidden: float
    space: float
    space_time: float
    commonest: float
    error_space: float | None
    error_space_time: float | None
    clips: int
    masks: int


def measure_copies(
    loaded: LoadedConfig,
    videos: Sequence[str] = (),
    seed: int = 0,
    ratios: Sequence[float] = RATIOS,
    num_masks: int = 10,
    num_clips: int = 2,
    num_videos: int = 0,
    pictures: bool = True,
) -> Iterator[VideoCopies]:
    """Hides tokens of many clips, copies the nearest visible ones there, and counts what is right.

    Args:
        loaded: configuration, from `vimpac_ext.engine.prepare`.
        videos: files, tokenized here; none = what TRAIN.TOKEN_STORE has of TRAIN.DATASET.
        seed: of the masks, which differ from video to video.
        ratios: shares of tokens to hide.
        num_masks: of each kind and clip.
        num_clips: of each video, spread over it.
        num_videos: stop after so many; 0 = all.
        pictures: whether to decode the copies, which needs a tokenizer that can.

    Yields:
        One result for each video, ratio and masker.

    Raises:
        ValueError: if a ratio is not between 0 and 1, or a number is too small.
        ConfigError: if the tokenizer cannot draw, and shall.
        MissingInputError: if there is no token store or no data set.
        VideoDecodeError: for a bad video.
    """
    if num_masks < 1 or num_clips < 1 or num_videos < 0:
        raise ValueError(
            f"num_masks={num_masks} and num_clips={num_clips} must be at least 1, "
            f"num_videos={num_videos} at least 0"
        )
    decode = _decoder(loaded) if pictures else None
    source = _tokenized(loaded, videos, num_clips) if videos else _stored(loaded, num_clips)
    for index, (name, clips) in enumerate(source):
        if num_videos and index == num_videos:
            return
        generator = torch.Generator()
        generator.manual_seed(int(item_generator(seed, 0, index).integers(2**62)))
        for ratio in ratios:
            yield from _of_video(name, clips, ratio, num_masks, generator, decode)


def _of_video(
    name: str,
    clips: list[Tensor],
    ratio: float,
    num_masks: int,
    generator: torch.Generator,
    decode: Callable[[Tensor], Tensor] | None,
) -> Iterator[VideoCopies]:
    frequent = [clip.unique(return_counts=True)[1].max().item() / clip.numel() for clip in clips]
    shares: dict[str, list[list[float]]] = {}
    errors: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for clip in clips:
        original = decode(clip) if decode else None
        for kind, masker in copy_maskers(ratio, clip).items():
            for mask in usable_masks(masker(clip.expand(num_masks, *clip.shape), generator)):
                numbers = [mask.double().mean().item()]
                for spatial in (True, False):
                    copied = nearest_visible(clip, mask, spatial)
                    numbers.append((copied == clip)[mask].double().mean().item())
                    if decode and original is not None:
                        pair = picture_errors(decode(copied), original, mask)
                        errors.setdefault((kind, spatial), []).append(pair)
                shares.setdefault(kind, []).append(numbers)
    for kind, masks in shares.items():
        hidden, space, space_time = torch.tensor(masks, dtype=torch.float64).mean(0).tolist()
        yield VideoCopies(
            video=name,
            masker=kind,
            ratio=ratio,
            hidden=hidden,
            space=space,
            space_time=space_time,
            commonest=sum(frequent) / len(frequent),
            error_space=_error_of(errors.get((kind, True))),
            error_space_time=_error_of(errors.get((kind, False))),
            clips=len(clips),
            masks=len(masks),
        )


def _error_of(pairs: Sequence[tuple[float, float]] | None) -> float | None:
    """Of all masks together: a mask of few or flat pixels counts for little."""
    if pairs is None:
        return None
    return relative_error(sum(wrong for wrong, _ in pairs), sum(blank for _, blank in pairs))


def _decoder(loaded: LoadedConfig) -> Callable[[Tensor], Tensor]:
    tokenizer, device = drawing_tokenizer(loaded), device_of(loaded.cfg)

    @torch.inference_mode()
    def decode(tokens: Tensor) -> Tensor:
        pictures: Tensor = tokenizer.decode(tokens.to(device)).cpu()
        return pictures

    return decode


def _tokenized(
    loaded: LoadedConfig, videos: Sequence[str], num_clips: int
) -> Iterator[tuple[str, list[Tensor]]]:
    device = device_of(loaded.cfg)
    tokenizer: Any = build_tokenizer(loaded.cfg).to(device)
    view = training_view(loaded.cfg)
    for video in videos:
        record = VideoRecord(video, Path(video).name)
        clips = read_spread_clips(record, view, loaded.cfg, num_clips)
        yield record.video_id, [tokenizer.encode(clip.to(device)).cpu() for clip in clips]


def _stored(loaded: LoadedConfig, num_clips: int) -> Iterator[tuple[str, list[Tensor]]]:
    cfg = loaded.cfg
    require_data(loaded)
    clips = TokenClips(
        open_store(cfg, "TRAIN"),
        build_dataset(cfg, "TRAIN").records,
        views=[training_view(cfg).name],
        num_frames=cfg.DATA.NUM_FRAMES,
        sampling=cfg.DATA.SAMPLING,
        sampling_rate=cfg.DATA.SAMPLING_RATE,
        mode="uniform",
        num_temporal_views=num_clips,
    )
    for index in range(len(clips)):
        item = clips[index]
        # Frames that a short video lacks are padding, alike in all its clips.
        parts = [clip[(clip != clips.pad).flatten(1).all(1)] for clip in item["clips"]]
        yield clips.records[item["video_index"]].video_id, parts
