"""The benchmark of decoding compares like with like."""

import importlib.util
from pathlib import Path

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


def test_speed_is_measured(video, tmp_path, monkeypatch):
    times = {"_read_ours": [1, 2, 3, 4], "_read_pytorchvideo": [4, 8, 12, 16]}
    clock = [0.0]
    for name, seconds in times.items():
        left = iter(seconds)  # the first is to warm up
        monkeypatch.setattr(
            decoding, name, lambda path, start, left=left: clock.append(clock.pop() + next(left))
        )
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("time.process_time", lambda: clock[0] / 2)
    result = decoding.measure_random_clips(tmp_path, {"mine": video}, num_clips=3)
    assert result.rows == {
        "mine: ours, clips/s": 1 / 3,
        "mine: pytorchvideo's reader, clips/s": 1 / 12,
        "mine: ratio": 4,
        "mine: ratio of processor time": 4,
    }


def test_videos_are_made_if_none_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "SIZES", {"tiny": (64, 48)})
    rows = decoding.measure_random_clips(tmp_path, num_clips=1, seconds=4).rows
    assert rows["tiny: ours, clips/s"] > 0


def test_tool(video, capsys):
    path = Path(__file__).resolve().parents[2] / "tools/benchmark.py"
    spec = importlib.util.spec_from_file_location("benchmark_tool_decoding", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words = ["data", "--only", "decoding", "--videos", str(video), "--clips", "2"]
    assert module.main(words) == 0
    assert f"{video}: ours, clips/s" in capsys.readouterr().out


def test_short_videos_are_refused(tmp_path):
    decoding.make_video(tmp_path / "short.mp4", (32, 32), seconds=2)
    with pytest.raises(ValueError, match=r"short\.mp4 has 4 frames at 2\.0 a second, too few"):
        decoding.measure_decoding(tmp_path / "short.mp4")
