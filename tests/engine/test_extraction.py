"""Token stores from a configuration: shares of the work, stop signals, full disks, summaries."""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from vimpac_ext.config import ConfigError
from vimpac_ext.data.store_check import check_store
from vimpac_ext.data.synthetic import encode_webm
from vimpac_ext.data.token_store import TokenStore
from vimpac_ext.engine import extraction, prepare
from vimpac_ext.engine.extraction import ExtractionStopped, WorkShare, extract_stores, work_share

ROOT = Path(__file__).resolve().parents[2]
NUM_VIDEOS = 10
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "6", "SLURM_LOCALID": "1"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Ten short clips of noise."""
    folder = tmp_path_factory.mktemp("videos with space")
    for index in range(NUM_VIDEOS):
        generator = np.random.default_rng(index)
        frames = generator.integers(0, 256, (3 + index % 4, 8, 9, 3), np.uint8)
        large = frames.repeat(8, axis=1).repeat(8, axis=2)
        (folder / f"clip {index}.webm").write_bytes(encode_webm(large, fps=4))
    return folder


@pytest.fixture
def config(videos, tmp_path):
    """A pre-training configuration over the clips."""
    tree = {
        "TASK": "PretrainTask",
        "TOKENIZER": "VQVAETokenizer",
        "DATA": {
            "PATH_TO_DATA_DIR": str(videos),
            "TARGET_FPS": 4.0,
            "TRAIN_CROP_SIZE": 64,
            "TEST_CROP_SIZE": 64,
            "VOCAB_SIZE": 64,
        },
        "TRAIN": {
            "DATASET": {"NAME": "VideoFolder", "split": ""},
            "TOKEN_STORE": str(tmp_path / "store"),
        },
        "TEST": {"ENABLE": False},
        "EXTRACT": {"BATCH_SIZE": 4},
        "NUM_GPUS": 0,
        "OUTPUT_DIR": str(tmp_path / "output"),
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def start_tool(*words, **environment):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tools/extract_tokens.py"), *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors
    return process.returncode, output, errors


def content(folder):
    """Everything in a store, video by video."""
    store = TokenStore(folder)
    assert len(set(store.video_ids)) == len(store.video_ids) == len(store)
    return {
        video_id: store.read(video_id, store.meta.views[0], range(store.num_frames(video_id)))
        for video_id in sorted(store.video_ids)
    }


@pytest.fixture
def unbroken(config, tmp_path):
    extract_stores(prepare(config, ["TRAIN.TOKEN_STORE", str(tmp_path / "unbroken")]))
    return content(tmp_path / "unbroken")


def assert_same(first, second):
    assert list(first) == list(second)
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ((None, None), {}, (0, 1, 0)),
        ((2, 4), {}, (2, 4, 2)),
        ((2, 4), TORCHRUN, (2, 4, 2)),  # the command line counts most
        ((None, None), TORCHRUN, (5, 8, 1)),
        ((None, None), SRUN, (3, 6, 1)),
        ((None, None), {**SRUN, **TORCHRUN}, (5, 8, 1)),  # torchrun within a SLURM job
        ((None, None), {**SRUN, "SLURM_STEP_NUM_TASKS": "4"}, (3, 4, 1)),  # srun -n 4 of 6
        ((None, None), {"RANK": "5"}, (0, 1, 0)),
        ((None, None), {"RANK": "1", "WORLD_SIZE": "2"}, (1, 2, 1)),
    ],
)
def test_share_of_the_work(arguments, environment, expected):
    assert work_share(*arguments, environment)[:3] == expected


@pytest.mark.parametrize(
    ("arguments", "environment", "reason"),
    [
        ((2, None), {}, "give both or none"),
        ((None, 2), {}, "give both or none"),
        ((4, 4), {}, r"shard 4 of 4 \(--shard_id, --num_shards\)"),
        ((-1, 4), {}, "shard -1 of 4"),
        ((None, None), {**TORCHRUN, "RANK": "one"}, "RANK is 'one', expected a number"),
        ((None, None), {**SRUN, "SLURM_NTASKS": "3"}, r"shard 3 of 3 \(SLURM_PROCID, SLURM_NTASKS"),
    ],
)
def test_senseless_shares(arguments, environment, reason):
    with pytest.raises(ValueError, match=reason):
        work_share(*arguments, environment)


def test_shares_cover_every_video_once(config, tmp_path, unbroken, caplog):
    caplog.set_level(logging.INFO)
    loaded = prepare(config)
    for shard_id in range(3):
        extract_stores(loaded, WorkShare(shard_id, 3, shard_id, "RANK, WORLD_SIZE"))
    assert_same(content(tmp_path / "store"), unbroken)
    assert TokenStore(tmp_path / "store").num_doubles == 0
    assert "shard 1 of 3 (RANK, WORLD_SIZE), on cpu, of 10 videos" in caplog.text
    summaries = [
        json.loads((tmp_path / f"store/extraction_0000{i}.json").read_text()) for i in range(3)
    ]
    assert [summary["num_videos"] for summary in summaries] == [4, 3, 3]
    assert sum(summary["num_frames"] for summary in summaries) == sum(map(len, unbroken.values()))
    for summary in summaries:
        assert summary["frames_per_second"] == summary["num_frames"] / summary["seconds"]
        assert 0 < summary["tokenizer_share"] < 1
        assert summary["bad_videos"] == []


def test_no_store_in_the_configuration(config):
    with pytest.raises(ConfigError, match="names no TRAIN.TOKEN_STORE or TEST.TOKEN_STORE"):
        extract_stores(prepare(config, ["TRAIN.TOKEN_STORE", ""]))


@pytest.mark.parametrize("stages", ["[]", "[{SOLVER: {MAX_EPOCH: 1}}, {SOLVER: {MAX_EPOCH: 2}}]"])
def test_a_list_of_the_authors_folders_is_not_extracted(config, tmp_path, stages):
    words = ["TRAIN.TOKEN_STORE", f"[{tmp_path}/dalle_a, {tmp_path}/dalle_b]"]
    with pytest.raises(ConfigError) as error:
        extract_stores(prepare(config, [*words, "TRAIN.STAGES", stages]))
    for part in ("TRAIN.TOKEN_STORE in the command line is a list", "dalle_a, ", "TRAIN.ENABLE"):
        assert part in str(error.value)
    assert not list(tmp_path.glob("dalle*"))


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]
)
def test_stopped_by_a_signal_it_goes_on(config, tmp_path, unbroken, monkeypatch, signum, code):
    build = extraction.build_tokenizer

    def build_stopping(cfg):
        tokenizer = build(cfg)
        encode, calls = tokenizer.encode, []

        def stopping(frames):
            calls.append(0)
            if len(calls) == 5:
                os.kill(os.getpid(), signum)
            return encode(frames)

        tokenizer.encode = stopping
        return tokenizer

    before = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        patch.setattr(extraction, "build_tokenizer", build_stopping)
        with pytest.raises(ExtractionStopped) as stopped:
            extract_stores(prepare(config))
    assert signal.getsignal(signum) is before
    num_done = len(TokenStore(tmp_path / "store"))
    assert 0 < num_done < NUM_VIDEOS
    assert stopped.value.exit_code == code
    name = signal.Signals(signum).name
    assert f"stopped by {name}: {num_done} of 10 videos are whole in" in str(stopped.value)
    summary = extract_stores(prepare(config))["TRAIN"]
    assert summary.num_already_done == num_done
    assert_same(content(tmp_path / "store"), unbroken)


def test_two_processes_at_once_and_a_restart_with_three(config, tmp_path, unbroken):
    """What the user sees of shards: logs, exit codes, one store, no merge."""
    processes = [
        start_tool("--cfg", config, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
        for rank in range(2)
    ]
    for rank, process in enumerate(processes):
        code, output, errors = finish(process)
        assert (code, errors) == (0, "")
        assert f"shard {rank} of 2 (RANK, WORLD_SIZE)" in output
        assert "5 videos, 0 done before, 5 extracted now" in output
    assert_same(content(tmp_path / "store"), unbroken)
    assert check_store(tmp_path / "store").problems == []
    summary = extract_stores(prepare(config), WorkShare(2, 3, 2, "test"))["TRAIN"]
    assert (summary.num_videos, summary.num_already_done) == (3, 3)


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_full_disk(config, tmp_path, unbroken):
    """A limit on the size of files stands for the disk; the slow test has a real one."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/extract_tokens.py"), "--cfg", str(config)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        preexec_fn=limit_file_size,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "is the disk full?" in done.stderr
    assert "start again to continue" in done.stderr
    assert check_store(tmp_path / "store").problems == []
    assert 0 < len(TokenStore(tmp_path / "store")) < NUM_VIDEOS
    extract_stores(prepare(config))
    assert_same(content(tmp_path / "store"), unbroken)


@pytest.mark.slow
def test_full_file_system(config, tmp_path, unbroken):
    """A real file system of 52 kB, where the user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=52k", "none", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted")
    try:
        overrides = ["TRAIN.TOKEN_STORE", str(disk / "store")]
        with pytest.raises(OSError, match="is the disk full"):
            extract_stores(prepare(config, overrides))
        assert check_store(disk / "store").problems == []
        num_done = len(TokenStore(disk / "store"))
        assert 0 < num_done < NUM_VIDEOS
        with pytest.raises(OSError, match="disk full"):  # still full
            extract_stores(prepare(config, overrides))
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        summary = extract_stores(prepare(config, overrides))["TRAIN"]
        assert summary.num_already_done == num_done
        assert_same(content(disk / "store"), unbroken)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
