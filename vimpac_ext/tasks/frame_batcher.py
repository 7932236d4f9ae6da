"""Frames of many videos in batches of one size, and their tokens video by video."""

import time
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from vimpac_ext.data.store_format import StoreMeta


class Encoder:
    """Runs a frozen tokenizer and counts the seconds.

    Attributes:
        seconds: spent so far, transfers included.
    """

    def __init__(self, tokenizer: nn.Module, device: torch.device, meta: StoreMeta) -> None:
        """Moves the tokenizer to its device.

        Args:
            tokenizer: see `vimpac_ext.registries.TOKENIZERS`.
            device: of the tokenizer.
            meta: of the store that is made: vocabulary and precision.
        """
        self.seconds = 0.0
        self._tokenizer: Any = tokenizer.to(device)
        self._device = device
        self._vocab_size, self._dtype = meta.vocab_size, meta.token_dtype
        self._bf16 = meta.precision == "bf16"
        if hasattr(tokenizer, "precision"):
            cast(Any, tokenizer).precision = meta.precision

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> np.ndarray:
        """Tokenises uint8 (N, S, S, 3): integers (N, h, w) of the store's type."""
        start = time.perf_counter()
        pixels = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).contiguous()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            codes: np.ndarray = self._tokenizer.encode(pixels.float() / 255).cpu().numpy()
        if codes.min() >= 0 and codes.max() < self._vocab_size:  # else the store refuses them
            codes = codes.astype(self._dtype)
        self.seconds += time.perf_counter() - start
        return codes


class FrameBatcher:
    """Collects frames of many videos until a batch is full, encodes it, hands the tokens back.

    Every batch has the same number of frames, the last one filled up with black. For a batch of
    another size libraries choose other algorithms, whose logits differ in the last digits; with
    one size a frame's tokens do not depend on the frames beside it, so that an interrupted and
    continued extraction gives what an unbroken one gives.
    """

    def __init__(self, encoder: Encoder, frames_per_batch: int) -> None:
        """Starts with nothing.

        Args:
            encoder: for the batches.
            frames_per_batch: frames, each with all its views.
        """
        self._encoder = encoder
        self._frames_per_batch = frames_per_batch
        self._frames: np.ndarray | None = None  # (frames_per_batch, V, S, S, 3)
        self._num_waiting = 0
        self._owners: list[tuple[int, int]] = []  # video and its number of frames, in the batch
        self._num_missing: dict[int, int] = {}  # frames of a video that wait for their tokens
        self._tokens: dict[int, list[np.ndarray]] = {}
        self._ended: set[int] = set()

    def add(self, video: int, frames: np.ndarray) -> None:
        """Take the next frames of a video, uint8 (n, V, S, S, 3)."""
        if self._frames is None:
            self._frames = np.zeros((self._frames_per_batch, *frames.shape[1:]), np.uint8)
        self._tokens.setdefault(video, [])
        while len(frames):
            first = self._num_waiting
            taken = frames[: self._frames_per_batch - first]
            self._frames[first : first + len(taken)] = taken
            self._owners.append((video, len(taken)))
            self._num_missing[video] = self._num_missing.get(video, 0) + len(taken)
            self._num_waiting += len(taken)
            frames = frames[len(taken) :]
            if self._num_waiting == self._frames_per_batch:
                self.flush()

    def end(self, video: int) -> None:
        """Note that a video has no more frames."""
        self._ended.add(video)

    def discard(self, video: int) -> None:
        """Forget a video; its frames in the present batch are encoded in vain."""
        self._tokens.pop(video, None)
        self._num_missing.pop(video, None)

    def flush(self) -> None:
        """Encode the frames that wait."""
        if self._frames is None or not self._num_waiting:
            return
        self._frames[self._num_waiting :] = 0
        num_frames, num_views = self._frames.shape[:2]
        codes = self._encoder.encode(self._frames.reshape(-1, *self._frames.shape[2:]))
        tokens = codes.reshape(num_frames, num_views, *codes.shape[1:])
        first = 0
        for video, number in self._owners:
            if video in self._tokens:
                self._tokens[video].append(tokens[first : first + number])
                self._num_missing[video] -= number
            first += number
        self._owners, self._num_waiting = [], 0

    def pop_finished(self) -> list[tuple[int, np.ndarray]]:
        """Videos that have ended and all of whose frames are encoded, with (F, V, h, w) tokens."""
        done = [video for video in self._ended if not self._num_missing[video]]
        self._ended.difference_update(done)
        for video in done:
            del self._num_missing[video]
        return [(video, np.concatenate(self._tokens.pop(video))) for video in done]
