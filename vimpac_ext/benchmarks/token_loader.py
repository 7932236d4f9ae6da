"""Loading clips of tokens: our store against the format that reads a whole record per sample."""

import io
from functools import partial
from pathlib import Path

import lmdb
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vimpac_ext.benchmarks.result import Result, speeds_in_turns
from vimpac_ext.data import StoreMeta, TokenClips, TokenStore, TokenStoreWriter
from vimpac_ext.data.clip_sampler import ClipSampler, item_generator
from vimpac_ext.structures import ClipSample, VideoRecord

_VIEW = "128center128"
_CLIP_FRAMES = 5
_BATCH_SIZE = 32


class WholeRecordClips(Dataset[ClipSample]):
    """Random clips from an LMDB of npz archives, the authors' format: a record is a whole video.

    Draws the same clips as `TokenClips` and gives the same samples.
    """

    def __init__(self, folder: Path, video_ids: list[str]) -> None:
        self._environment = lmdb.open(str(folder), readonly=True, lock=False)
        self._keys = [video_id.encode() for video_id in video_ids]
        self._sampler = ClipSampler("random", num_views=1, num_frames=_CLIP_FRAMES)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> ClipSample:
        with self._environment.begin() as transaction:
            record = np.load(io.BytesIO(transaction.get(self._keys[index], b"")))
        tokens = record["tokens"]
        ((_, frames),) = self._sampler.clips(len(tokens), item_generator(0, 0, index))
        clip = torch.from_numpy(tokens[frames].astype(np.int64))
        return {"clips": clip[None], "label": int(record["label"]), "video_index": index}


def measure_token_loader(
    folder: Path, num_videos: int = 200, num_frames: int = 780, seconds: float = 5.0
) -> Result:
    """Samples per second of both formats in one process, in turns.

    Args:
        folder: where the two stores are written, 0.8 MB a video of 780 frames.
        num_videos: in each.
        num_frames: of a video, 16 x 16 tokens each.
        seconds: of measuring, for each number.
    """
    records = [VideoRecord(f"{i}.mp4", f"class/video_{i}", label=i % 10) for i in range(num_videos)]
    _write_both(folder, records, num_frames)
    ours = TokenClips(TokenStore(folder / "ours"), records, [_VIEW], _CLIP_FRAMES, 1, "random")
    theirs = WholeRecordClips(folder / "whole", [record.video_id for record in records])
    for index in range(num_videos):
        assert torch.equal(ours[index]["clips"], theirs[index]["clips"])
    speeds = speeds_in_turns(
        {
            "samples": partial(_read_items, ours),
            "whole samples": partial(_read_items, theirs),
            "batches": partial(_read_batches, ours),
            "whole batches": partial(_read_batches, theirs),
        },
        seconds,
    )
    rates = {name: speed.per_second for name, speed in speeds.items()}
    frame_bytes = TokenStore(folder / "ours").meta.frame_dtype.itemsize
    return Result(
        f"token loader, {num_videos} videos x {num_frames} frames x 16 x 16, clips of "
        f"{_CLIP_FRAMES} frames, one process, files in memory",
        {
            "our store, samples/s": rates["samples"],
            "whole records, samples/s": rates["whole samples"],
            "ratio": rates["samples"] / rates["whole samples"],
            f"our store, DataLoader with batches of {_BATCH_SIZE}, samples/s": rates["batches"],
            f"whole records, DataLoader with batches of {_BATCH_SIZE}, samples/s": rates[
                "whole batches"
            ],
            "ratio with DataLoader": rates["batches"] / rates["whole batches"],
            "our store, bytes of a sample": _CLIP_FRAMES * frame_bytes,
            "whole records, bytes of a sample": num_frames * 16 * 16 * 2,
        },
    )


def _write_both(folder: Path, records: list[VideoRecord], num_frames: int) -> None:
    """The same random tokens in both formats."""
    meta = StoreMeta("Random", "Random:0", 8192, 8, 2.0, (_VIEW,), (16, 16))
    generator = np.random.default_rng(0)
    map_size = len(records) * num_frames * 600 + 2**20
    whole = lmdb.open(str(folder / "whole"), map_size=map_size, sync=False)
    with TokenStoreWriter(folder / "ours", meta) as writer, whole:
        for record in records:
            tokens = generator.integers(0, 8192, (num_frames, 16, 16), np.int16)
            writer.add(record.video_id, {_VIEW: tokens})
            archive = io.BytesIO()
            np.savez(archive, tokens=tokens, label=np.int16(record.label))
            with whole.begin(write=True) as transaction:
                transaction.put(record.video_id.encode(), archive.getvalue())


def _read_items(clips: TokenClips | WholeRecordClips) -> int:
    for index in range(len(clips)):
        clips[index]
    return len(clips)


def _read_batches(clips: TokenClips | WholeRecordClips) -> int:
    return sum(len(batch["label"]) for batch in DataLoader(clips, _BATCH_SIZE))
