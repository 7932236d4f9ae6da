"""Checking videos: every one has a result, whatever it does to the process that decodes it."""

import json
import os
import re
import time
from pathlib import Path

import pytest
from made_videos import MadeVideo

from vimpac_ext.data import video_check
from vimpac_ext.data.killable_pool import run_each
from vimpac_ext.data.video_check import check_videos, records_of_paths
from vimpac_ext.structures import VideoRecord


def behave(item):
    """What a decoder may do with a file."""
    if item == "hang":
        time.sleep(1000)
    if item == "die":
        os._exit(7)
    if item == "segfault":
        os.kill(os.getpid(), 11)
    return f"did {item}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three good videos, one cut off, one empty, one that is text, one damaged inside."""
    folder = tmp_path_factory.mktemp("videos")
    for name in ("a good.mp4", "ü/good.webm", "good.ts"):
        (folder / name).parent.mkdir(exist_ok=True)
        codec = "libvpx" if name.endswith("webm") else "libx264"
        options = {"deadline": "realtime", "cpu-used": "-8"} if codec == "libvpx" else {}
        MadeVideo(name, codec, times=range(30), codec_options=options).write(folder)
    whole = (folder / "a good.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").touch()
    (folder / "text.avi").write_text("404 Not Found\n" * 100)
    noisy = bytearray((folder / "good.ts").read_bytes())
    noisy[len(noisy) // 2 : len(noisy) // 2 + 500] = bytes(500)
    (folder / "noisy.ts").write_bytes(noisy)
    return folder


BAD = {"cut.mp4": "cut off|missing|Invalid", "empty.mp4": "empty", "text.avi": "Invalid data"}


def check(records, output, **options):
    return check_videos(records, output, progress=False, **{"timeout": 60, **options})


def lines(file: Path):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_processes_that_hang_or_die_are_replaced():
    items = ["one", "hang", "two", "die", "segfault", "three"]
    begin = time.monotonic()
    outcomes = {items[o.rank]: o for o in run_each(behave, items, num_workers=2, timeout=1.0)}
    assert time.monotonic() - begin < 60
    assert outcomes.keys() == set(items)
    for item in ("one", "two", "three"):
        assert (outcomes[item].value, outcomes[item].failure) == (f"did {item}", "")
    assert outcomes["hang"].failure == "not done after 1 s"
    assert [item for item, outcome in outcomes.items() if outcome.timed_out] == ["hang"]
    assert outcomes["die"].failure == "its process died with exit code 7"
    assert outcomes["segfault"].failure == "its process died with exit code -11"


def test_every_video_is_listed_with_its_reason(folder, tmp_path):
    missing = VideoRecord(str(folder / "missing.mp4"), "missing")
    early = VideoRecord(str(folder / "a good.mp4"), "segment", start=5.0, end=6.0)
    records = [*records_of_paths([str(folder)]), missing, early, missing]
    summary = check(records, tmp_path)
    assert len(summary.checks) == len(records) - 1  # one was there twice
    bad = {(Path(c.path).name, c.start): c for c in summary.bad}
    for name, reason in BAD.items():
        assert bad[name, None].status == "broken"
        assert re.search(reason, bad[name, None].reason)
    assert {name for name, _ in bad} - {"noisy.ts"} == {*BAD, "missing.mp4", "a good.mp4"}
    assert "starts at 5 s but the video has" in bad["a good.mp4", 5.0].reason
    assert all(c.path in c.reason for c in summary.bad)
    good = {Path(c.path).name: c for c in summary.checks if c.status == "ok"}
    assert good["a good.mp4"].duration == pytest.approx(1.2)

    assert lines(tmp_path / "bad_videos.jsonl") == [
        {"video_id": c.video_id, "path": c.path, "reason": c.reason} for c in summary.bad
    ]
    counts = json.loads((tmp_path / "summary.json").read_text())
    assert counts["num_videos"] == len(summary.checks)
    assert counts["num_ok"] == len(good)
    assert counts["num_broken"] == len(summary.bad)
    assert counts["num_timeout"] == counts["num_crash"] == 0


def test_an_interrupted_check_continues(folder, tmp_path, monkeypatch):
    records = records_of_paths([str(folder)])
    every = video_check._check_each

    def interrupted(todo, *options):
        for done, result in enumerate(every(todo, *options)):
            if done == 2:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(video_check, "_check_each", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check(records, tmp_path, num_workers=1)
    results = tmp_path / "checked_videos.jsonl"
    with results.open("a") as stream:
        stream.write('{"path": "cut of')  # as a crash leaves it
    monkeypatch.undo()
    summary = check(records, tmp_path)
    assert summary.num_kept == 2
    assert len(lines(results)) == len(records) == len(summary.checks)
    assert check(records, tmp_path / "whole").checks[0].status == summary.checks[0].status


def test_only_what_changed_is_checked_again(folder, tmp_path, monkeypatch):
    copy = tmp_path / "videos"
    copy.mkdir()
    for name in ("a good.mp4", "empty.mp4", "good.ts"):
        (copy / name).write_bytes((folder / name).read_bytes())
    records = [*records_of_paths([str(copy)]), VideoRecord(str(copy / "missing.mp4"), "m")]
    assert len(check(records, tmp_path / "out").bad) == 2
    checked = []
    monkeypatch.setattr(
        video_check, "run_each", lambda _, jobs, *__: checked.extend(jobs) or iter(())
    )

    def names(**options):
        checked.clear()
        with pytest.raises(KeyError):  # no results come
            check(records, tmp_path / "out", **options)
        return sorted(Path(record.path).name for record, _ in checked)

    assert names() == ["missing.mp4"]
    assert names(quick=True) == ["missing.mp4"]
    (copy / "empty.mp4").write_bytes((copy / "good.ts").read_bytes())
    assert names() == ["empty.mp4", "missing.mp4"]
    assert names(again=True) == ["a good.mp4", "empty.mp4", "good.ts", "missing.mp4"]


def test_quick_finds_what_opening_finds_and_is_no_full_check(folder, tmp_path):
    quick = check(records_of_paths([str(folder)]), tmp_path, quick=True)
    assert {*BAD} <= {Path(c.path).name for c in quick.bad}
    full = check(records_of_paths([str(folder)]), tmp_path)
    assert full.num_kept == 0


def test_a_crash_and_a_hang_are_results(folder, tmp_path, monkeypatch):
    records = records_of_paths([str(folder / "a good.mp4"), str(folder / "good.ts")])
    items = iter(["hang", "die"])
    every = video_check.run_each
    monkeypatch.setattr(
        video_check,
        "run_each",
        lambda _, jobs, *options: every(behave, [next(items) for _ in jobs], *options),
    )
    summary = check(records, tmp_path, timeout=0.5)
    assert [c.status for c in summary.checks] == ["timeout", "crash"]
    assert summary.checks[0].reason.endswith("a good.mp4: not done after 0.5 s")
    monkeypatch.undo()
    assert check(records, tmp_path).num_kept == 0  # both deserve another chance
    assert not (tmp_path / "bad_videos.jsonl").exists()


def test_bad_options_and_files(tmp_path):
    with pytest.raises(ValueError, match="at least one worker, one video and a positive timeout"):
        check([], tmp_path)
    with pytest.raises(ValueError, match="no videos found"):
        records_of_paths([str(tmp_path)])
    (tmp_path / "checked_videos.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match=r"checked_videos\.jsonl, line 1: not a result"):
        check([VideoRecord("x.mp4", "x")], tmp_path)
