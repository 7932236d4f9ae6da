"""Frames of many videos in batches of one size."""

import numpy as np
import pytest
import torch

from vimpac_ext.data.store_format import StoreMeta
from vimpac_ext.tasks.frame_batcher import Encoder, FrameBatcher

META = StoreMeta("FirstPixel", "x", 256, 4, 2.0, ("a", "b"), (1, 1))


class FirstPixel(torch.nn.Module):
    """The token of a 4 x 4 image is the red of its first pixel."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def encode(self, images):
        self.batches.append((images[:, 0, 0, 0] * 255).round().int().tolist())
        return (images[:, 0, :1, :1] * 255).round().long()


def frames_of(video, number):
    """uint8 (number, 2 views, 4, 4, 3) that say which video, frame and view they are."""
    frames = np.zeros((number, 2, 4, 4, 3), np.uint8)
    frames[:, 0] = (20 * video + np.arange(number))[:, None, None, None]
    frames[:, 1] = (20 * video + np.arange(number) + 10)[:, None, None, None]
    return frames


def expected_tokens(video, number):
    return frames_of(video, number)[:, :, :1, :1, 0]


@pytest.fixture
def tokenizer():
    return FirstPixel()


@pytest.fixture
def batcher(tokenizer):
    return FrameBatcher(Encoder(tokenizer, torch.device("cpu"), META), 3)


def test_videos_that_share_batches(batcher, tokenizer):
    first, second = frames_of(1, 5), frames_of(2, 2)
    batcher.add(1, first[:2])
    batcher.add(2, second[:1])  # fills the first batch
    assert len(tokenizer.batches) == 1
    batcher.add(1, first[2:])
    batcher.end(1)
    ((video, tokens),) = batcher.pop_finished()  # the second batch held the rest of video 1
    assert video == 1
    np.testing.assert_array_equal(tokens, expected_tokens(1, 5))
    batcher.add(2, second[1:])
    batcher.end(2)
    assert batcher.pop_finished() == []
    batcher.flush()
    ((video, tokens),) = batcher.pop_finished()
    assert video == 2
    np.testing.assert_array_equal(tokens, expected_tokens(2, 2))
    assert [len(batch) for batch in tokenizer.batches] == [6, 6, 6]
    assert tokenizer.batches[2] == [41, 51, 0, 0, 0, 0]  # filled up with black
    batcher.flush()
    assert len(tokenizer.batches) == 3  # nothing was waiting


def test_discarded_video_leaves_the_others_alone(batcher):
    batcher.add(1, frames_of(1, 2))
    batcher.discard(1)
    batcher.add(2, frames_of(2, 3))
    batcher.end(2)
    batcher.flush()
    ((video, tokens),) = batcher.pop_finished()
    assert video == 2
    np.testing.assert_array_equal(tokens, expected_tokens(2, 3))
    batcher.discard(3)  # failed before its first frame


def test_one_video_over_many_batches(batcher):
    batcher.add(0, frames_of(0, 10))
    batcher.end(0)
    batcher.flush()
    ((_, tokens),) = batcher.pop_finished()
    assert tokens.dtype == np.uint8  # that of the store
    np.testing.assert_array_equal(tokens, expected_tokens(0, 10))
    assert batcher.pop_finished() == []


def test_tokens_outside_the_vocabulary_are_not_wrapped(tokenizer):
    tokenizer.encode = lambda images: torch.full((len(images), 1, 1), 256)
    encoder = Encoder(tokenizer, torch.device("cpu"), META)
    assert encoder.encode(np.zeros((2, 4, 4, 3), np.uint8)).max() == 256
