"""Pairs of clips within a distance: the authors' rule, and all outcomes counted."""

import io
import itertools
import random
import shutil
from collections import Counter
from fractions import Fraction

import lmdb
import numpy as np
import pytest

from vimpac_ext.data.clip_sampling import clip_indices, max_start, pair_starts

PAD = 8193


class PythonDraws:
    """A generator that draws from Python's random, as the authors' code does."""

    def __init__(self, seed, num_folders):
        random.seed(seed)
        random.choice(range(num_folders))  # the code draws the folder of tokens first

    def integers(self, low, high, endpoint):
        assert endpoint
        return random.randint(low, high)


class AllDraws:
    """A generator that is asked for ``path``, and remembers how likely that was."""

    def __init__(self, path):
        self.path = list(path)
        self.probability = Fraction(1)

    def integers(self, low, high, endpoint):
        assert endpoint
        choices = range(low, high + 1)
        position = self.path.pop(0)
        if position >= len(choices):
            raise IndexError
        self.probability /= len(choices)
        return choices[position]


def outcomes(num_frames, clip_length, stride, distance):
    """Probability of every pair of starts."""
    table = Counter()
    for path in itertools.product(range(num_frames + 1), repeat=2):
        draws = AllDraws(path)
        try:
            pair = pair_starts(num_frames, clip_length, stride, draws, distance)
        except IndexError:
            continue
        table[pair] += draws.probability
    return table


@pytest.fixture(scope="module")
def authors(fixtures_dir, tmp_path_factory):
    """Token maps of the centre view by rank of the video, and the authors' samples."""
    original = fixtures_dir / "original"
    name = "dalle_ucf101_train_test_fps16_hflip0_128center128"
    # A copy, because LMDB refuses to open a folder that another test still has open.
    folder = tmp_path_factory.mktemp("pairs") / name
    shutil.copytree(original / "video_tokens" / name, folder)
    with (
        lmdb.open(str(folder), readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        videos = {bytes(key): np.load(io.BytesIO(value))["tokens"]
                  for key, value in transaction.cursor()}  # fmt: skip
    return [videos[key].astype(np.int64) for key in sorted(videos)], np.load(
        original / "token_samples.npz"
    )


@pytest.mark.parametrize("distance", [None, 0, 4])
@pytest.mark.parametrize("rank", range(4))
def test_the_authors_draws_give_the_authors_pairs(authors, distance, rank):
    videos, samples = authors
    tokens = videos[rank]
    starts = pair_starts(len(tokens), 5, 1, PythonDraws(1000 + 980 + rank, 1), distance)
    wanted = samples[f"pretrain_R{distance}/{rank}/tokens"]
    for start, clip in zip(starts, wanted, strict=True):
        chosen = tokens[clip_indices(start, len(tokens), 5, 1)]
        missing = ((0, 5 - len(chosen)), (0, 0), (0, 0))
        np.testing.assert_array_equal(np.pad(chosen, missing, constant_values=PAD), clip)


@pytest.mark.parametrize("distance", [None, 0, 1, 3, 30])
@pytest.mark.parametrize(("num_frames", "stride"), [(3, 1), (5, 1), (9, 1), (12, 1), (14, 2)])
def test_every_outcome_has_the_authors_probability(num_frames, stride, distance):
    """First start uniform in 0..d, second in max(0, s-R)..min(s+R, d)."""
    last = max_start(num_frames, 5, stride)
    expected = Counter()
    for first in range(last + 1):
        reach = last if distance is None else distance
        seconds = [second for second in range(last + 1) if abs(second - first) <= reach]
        for second in seconds:
            expected[first, second] = Fraction(1, (last + 1) * len(seconds))
    assert outcomes(num_frames, 5, stride, distance) == expected
    assert sum(expected.values()) == 1
