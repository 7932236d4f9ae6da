"""Statistics of a token store, by hand."""

import json
import math

import numpy as np
import pytest

from vimpac_ext.data.store_format import StoreMeta
from vimpac_ext.data.store_report import statistics
from vimpac_ext.data.store_stats import store_statistics
from vimpac_ext.data.token_store_writer import TokenStoreWriter

META = StoreMeta("Fake", "Fake:1", 300, 8, 4.0, ("left", "right"), (2, 3))


@pytest.fixture
def store(tmp_path):
    """Two shards: 3 videos, one of them in both, of 1, 2 and 9 frames, and a bad one."""
    folder = tmp_path / "store"
    with TokenStoreWriter(folder, META, 0, 2) as writer:
        writer.add("a", {"left": np.zeros((1, 2, 3), int), "right": np.full((1, 2, 3), 7)})
        tokens = np.arange(12).reshape(2, 2, 3) % 4
        writer.add("b", {"left": tokens, "right": np.full((2, 2, 3), 7)})
        writer.mark_bad("d", "d.mp4", "cut off")
        writer.mark_bad("c", "c.mp4", "not there yet")
    with TokenStoreWriter(folder, META, 1, 2) as writer:
        writer.add("c", {"left": np.full((9, 2, 3), 299), "right": np.full((9, 2, 3), 7)})
        writer.done = type(writer.done)([])
        writer.add("a", {"left": np.ones((1, 2, 3), int), "right": np.full((1, 2, 3), 7)})
    return folder


def test_numbers(store):
    result = store_statistics(store)
    assert (result.num_videos, result.num_doubles, result.num_shards) == (3, 1, 2)
    assert (result.num_frames, result.frames_per_video) == (12, (1, 2, 9))
    assert result.hours == 12 / 4 / 3600
    assert result.num_bytes == sum(f.stat().st_size for f in store.rglob("*") if f.is_file())
    assert [bad.video_id for bad in result.bad_videos] == ["d"]
    # left: code 0 six times in "a" and thrice in "b", 1 to 3 thrice each, 299 54 times; of 72
    shares = [9 / 72, 3 / 72, 3 / 72, 3 / 72, 54 / 72]
    left = result.views["left"]
    assert left.codes_used == 5
    assert left.perplexity == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    right = result.views["right"]
    assert (right.codes_used, right.perplexity) == (1, 1)
    shares = [9 / 144, 3 / 144, 3 / 144, 3 / 144, 54 / 144, 72 / 144]
    both = result.views["all views"]
    assert both.codes_used == 6
    assert both.perplexity == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))


def test_uniform_use_of_the_vocabulary(tmp_path):
    meta = StoreMeta("Fake", "Fake:1", 256, 8, 4.0, ("v",), (16, 16))
    with TokenStoreWriter(tmp_path / "s", meta) as writer:
        writer.add("a", {"v": np.arange(256).reshape(1, 16, 16)})
    use = store_statistics(tmp_path / "s").views["v"]
    assert use.codes_used == 256
    assert use.perplexity == pytest.approx(256)


def test_report(store):
    text = statistics(store, as_json=False)
    for part in ("Fake:1", "3 in 2 shards (1 in two of them)", "12 (0.0 hours)", "1, 2, 9"):
        assert part in text
    assert "unreadable: d: cut off" in text
    content = json.loads(statistics(store, as_json=True))
    assert content["num_videos"] == 3
    assert content["views"]["right"] == {"codes_used": 1, "perplexity": 1.0}
    assert content["bad_videos"] == [{"video_id": "d", "path": "d.mp4", "reason": "cut off"}]


def test_empty_store(tmp_path):
    with TokenStoreWriter(tmp_path / "s", META):
        pass
    result = store_statistics(tmp_path / "s")
    assert (result.num_videos, result.num_frames, result.frames_per_video) == (0, 0, (0, 0, 0))
    assert result.views["left"].codes_used == 0


def test_damaged_video_is_not_counted_silently(store):
    file = store / "shard_00001" / "data.mdb"
    content = file.read_bytes()
    file.write_bytes(content.replace(np.full(6, 299, "<u2").tobytes(), bytes(12)))
    with pytest.raises(ValueError, match="video 'c' .* is damaged in view left"):
        store_statistics(store)
