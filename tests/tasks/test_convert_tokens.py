"""Conversion of the authors' token folders: equal clips, nothing lost unseen, safe to kill."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from original_format import record, write_token_folder

from vimpac_ext.data import OriginalTokens, TokenStore, TokenStoreWriter, open_token_dataset
from vimpac_ext.tasks.convert_tokens import convert_tokens

ROOT = Path(__file__).resolve().parents[2]
TOOL = [sys.executable, str(ROOT / "tools" / "convert_tokens.py")]
KIND = "dalle_own_train_fps2_hflip0_"


def made_tokens(seed, num_frames):
    return np.random.default_rng(seed).integers(0, 8192, (num_frames, 2, 2))


def made(folder, view, values, kind=KIND):
    return write_token_folder(folder / f"{kind}{view}", values)


def convert(sources, store, **options):
    return convert_tokens(sources, store, progress=False, **options)


def test_every_clip_of_the_fixture_is_the_same_afterwards(fixtures_dir, tmp_path):
    folders = fixtures_dir / "original" / "video_tokens"
    summary = convert([folders], tmp_path)
    counts = (summary.num_videos, summary.num_converted, summary.num_verified)
    assert counts == (4, 4, 4)
    assert not summary.bad_videos
    store = TokenStore(tmp_path)
    assert store.meta == OriginalTokens(folders).meta
    assert store.meta.token_dtype == np.dtype("<u2")
    for options in (
        {"mode": "uniform", "num_temporal_views": 3, "sampling_rate": 4},
        {"mode": "pair", "max_distance_seconds": 0.5},
        {"mode": "random", "views": ["128bottom128"], "seed": 7},
    ):
        before = open_token_dataset(folders, **options)
        after = open_token_dataset(tmp_path, **options)
        assert before.records == after.records
        assert [r.label for r in after.records] == [0, 2, 10, 100]
        for index in range(4):
            a, b = before[(3, index)], after[(3, index)]
            assert (a["clips"] == b["clips"]).all()
            assert (a["label"], a["video_index"]) == (b["label"], b["video_index"])


def test_damaged_missing_and_uneven_videos_are_listed(tmp_path, capsys, monkeypatch):
    good = record(made_tokens(0, 5), label=1)
    odd = {"good": good, "broken": good[:200], "long": record(made_tokens(1, 6), label=2)}
    made(tmp_path, "16top16", {**odd, "alone": good, "empty": record(made_tokens(2, 0))})
    made(
        tmp_path,
        "16bottom16",
        {**odd, "broken": good, "long": record(made_tokens(1, 4)), "empty": record([[[0, 0]] * 2])},
    )
    monkeypatch.setattr("vimpac_ext.command_line.start_logging", lambda: None)
    tool = runpy.run_path(TOOL[1])["main"]
    words = [str(tmp_path), str(tmp_path / "store")]
    assert tool(words) == 1
    output = capsys.readouterr().out
    assert "5 videos, 0 done before, 2 converted" in output
    assert "2 verified, 1 shortened, 3 failed" in output
    assert "shortened to 4 frames: long (6 in 16top16, 4 in 16bottom16)" in output
    assert "failed: alone: missing in the view 16bottom16" in output
    assert "failed: broken: video 'broken' in " in output
    assert "failed: empty: video 'empty' has no frames" in output
    lines = (tmp_path / "store" / "bad_videos.jsonl").read_text().splitlines()
    assert {json.loads(line)["video_id"] for line in lines} == {"alone", "broken", "empty"}
    store = TokenStore(tmp_path / "store")
    assert sorted(store.video_ids) == ["good", "long"]
    np.testing.assert_array_equal(store.read("long", "16top16", range(4)), made_tokens(1, 6)[:4])

    # Mended, the next run adds what was missing.
    made(tmp_path, "16top16", {"broken": good, "empty": good})
    made(tmp_path, "16bottom16", {"alone": good, "empty": good})
    assert tool(words) == 0
    assert "5 videos, 2 done before, 3 converted" in capsys.readouterr().out
    assert not (tmp_path / "store" / "bad_videos.jsonl").exists()
    assert len(TokenStore(tmp_path / "store")) == 5


def test_a_killed_conversion_continues_with_nothing_lost_or_doubled(tmp_path):
    values = {f"v{i:04}": record(made_tokens(i, 4), label=i) for i in range(200)}
    made(tmp_path, "16top16", values)
    command = [*TOOL, str(tmp_path), str(tmp_path / "store")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    index = tmp_path / "store" / "shard_00000" / "index.bin"
    deadline = time.monotonic() + 60
    while not (index.is_file() and index.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done_before = len(TokenStore(tmp_path / "store"))
    assert 0 < done_before < 200
    summary = convert([tmp_path], tmp_path / "store")
    assert summary.num_already_done == done_before
    assert summary.num_converted == 200 - done_before
    assert summary.num_verified == 200
    store = TokenStore(tmp_path / "store")
    assert sorted(store.video_ids) == sorted(values)
    for i, video_id in enumerate(values):
        np.testing.assert_array_equal(store.read(video_id, "16top16", range(4)), made_tokens(i, 4))


def test_a_store_of_other_tokens_is_noticed(tmp_path):
    made(tmp_path, "16top16", {"a": record(made_tokens(0, 5))})
    with TokenStoreWriter(tmp_path / "store", OriginalTokens(tmp_path).meta) as writer:
        writer.add("a", {"16top16": made_tokens(1, 5)})
    with pytest.raises(ValueError, match="video 'a', view 16top16: .* has other tokens than"):
        convert([tmp_path], tmp_path / "store")
    assert convert([tmp_path], tmp_path / "store", verify=False).num_already_done == 1


def test_howto100m_gets_no_labels(tmp_path):
    kind = "dalle_howto100m_train_val_fps2_hflip0_"
    made(tmp_path, "16center16", {"a": record(made_tokens(0, 5), label=3)}, kind)
    convert([tmp_path], tmp_path / "store")
    assert not (tmp_path / "store" / "videos.csv").exists()
    assert open_token_dataset(tmp_path / "store").records[0].label == -1
    with pytest.raises(ValueError, match="labels of the token store are not known"):
        open_token_dataset(tmp_path / "store", labelled=True)


@pytest.mark.parametrize(
    ("view", "kind", "reason"),
    [
        ("16bottom16", "dalle_own_train_fps16_hflip0_", "2 fps, 16 px.*"),
        ("16bottom16", "dalle_own_val_fps2_hflip0_", "different kinds: own_train .*; own_val"),
        ("32top32", KIND, "16 px; own_train at 2 fps, 32 px"),
        ("16bottom16", "clip_own_train_fps2_hflip0_", "matches no token folder of the authors'"),
    ],
)
def test_mixed_sources_are_refused(tmp_path, view, kind, reason):
    value = {"a": record(made_tokens(0, 5))}
    sources = [made(tmp_path, "16top16", value), made(tmp_path, view, value, kind)]
    with pytest.raises(ValueError, match=reason):
        convert(sources, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_store_is_not_made_inside_a_source_nor_of_other_views(tmp_path):
    folder = made(tmp_path, "16top16", {"a": record(made_tokens(0, 5))})
    with pytest.raises(ValueError, match="is a source"):
        convert([folder], folder)
    assert sorted(path.name for path in folder.iterdir()) == ["data.mdb"]
    convert([folder], tmp_path / "store")
    made(tmp_path, "16bottom16", {"a": record(made_tokens(0, 5))})
    with pytest.raises(ValueError, match="made with other settings.*views"):
        convert([tmp_path], tmp_path / "store")
