"""The benchmark of decoding compares like with like."""

import numpy as np
import pytest

from vimpac_ext import compat
from vimpac_ext.benchmarks import decoding
from vimpac_ext.data.decode import VideoReader


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "made.mp4"
    decoding.make_video(path, (96, 64), seconds=6)
    return path


def test_both_readers_show_the_same_moments(video):
    """The frames nearest to the same times; pytorchvideo's clip has all frames, of which 5 stay."""
    compat.install()
    ours = decoding._read_ours(video, 4)
    theirs = decoding._read_pytorchvideo(video, 4).permute(1, 2, 3, 0).numpy()
    assert ours.shape == theirs.shape == (5, 64, 96, 3)
    every = VideoReader(video).frames_between(0, 6).astype(float)
    for frames, offset in ((ours, 7), (theirs, 0)):  # ours is at the middle of the half second
        found = [int(np.abs(every - frame).mean(axis=(1, 2, 3)).argmin()) for frame in frames]
        assert found == [60 + offset + 15 * index for index in range(5)]


def test_speed_is_measured(video, capsys):
    decoding.main(["--videos", str(video), "--clips", "2"])
    assert "clips/s against" in capsys.readouterr().out
    speed = decoding.measure_decoding(video, num_clips=2)
    assert min(speed) > 0


def test_short_videos_are_refused(tmp_path):
    decoding.make_video(tmp_path / "short.mp4", (32, 32), seconds=2)
    with pytest.raises(ValueError, match=r"short\.mp4 has 4 frames at 2\.0 a second, too few"):
        decoding.measure_decoding(tmp_path / "short.mp4")
