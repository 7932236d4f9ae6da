"""Damaged videos through check, extraction and test: no crash, no hang, every one counted."""

import collections
import json
import time

import pytest
import yaml
from mutations import SOURCES, mutated_videos
from torch import nn

from vimpac_ext.data import FrameClips, TokenClips, TokenStore, spatial_views
from vimpac_ext.data.decode import VideoDecodeError
from vimpac_ext.data.video_check import check_videos
from vimpac_ext.engine import prepare, run
from vimpac_ext.structures import VideoRecord
from vimpac_ext.tasks.extract_tokens import extract

FPS = 10
SECONDS_A_FILE = 20.0  # generous: the videos have 30 frames, and the machine may be busy


class MeanColour(nn.Module):
    """Token = brightness of an 8x8 patch in 64 steps."""

    vocab_size, stride, fingerprint = 64, 8, "MeanColour-1"

    def encode(self, frames):
        return (nn.functional.avg_pool2d(frames, 8).mean(dim=1) * 63).round().long()


@pytest.mark.parametrize(
    ("number", "seed"), [(30, 0), pytest.param(200, 1, marks=pytest.mark.slow)]
)
def test_damaged_videos_are_read_or_reported(number, seed, tmp_path):
    paths = mutated_videos(tmp_path, number, seed)
    records = [VideoRecord(str(path), path.stem, label=0) for path in paths]

    # Checked in processes that would be killed: none needs to be.
    summary = check_videos(records, tmp_path / "check", timeout=SECONDS_A_FILE, progress=False)
    statuses = collections.Counter(check.status for check in summary.checks)
    assert statuses["ok"] + statuses["broken"] == len(summary.checks) == number
    assert 0.2 * number < statuses["broken"] < number  # most damage is noticed, some is harmless
    good = {check.video_id for check in summary.checks if check.status == "ok"}

    # Extraction lists what it leaves out.
    view = spatial_views("center", 32)
    store_folder = tmp_path / "tokens"
    done = extract(
        records, MeanColour(), store_folder, FPS, view, on_bad_video="skip", progress=False
    )
    assert done.num_extracted + len(done.bad_videos) == number
    extracted = {record.video_id for record in records} - {bad.video_id for bad in done.bad_videos}
    assert good <= extracted  # the check also looks at what comes after the last chosen frame
    assert len(extracted - good) < 0.1 * number
    assert all(bad.path in bad.reason for bad in done.bad_videos)

    # Views of a test, of tokens and of pixels.
    options = {"num_frames": 5, "sampling_rate": 1, "mode": "uniform", "num_temporal_views": 2}
    store = TokenStore(store_folder)
    tokens = TokenClips(store, records, [view[0].name], allow_missing=True, **options)
    assert len(tokens) == len(extracted)
    assert all(tokens[index]["clips"].shape == (2, 5, 4, 4) for index in range(len(tokens)))
    frames = FrameClips(records, view, fps=FPS, **options)
    unreadable = set()
    for index, record in enumerate(records):
        begin = time.monotonic()
        try:
            clips = frames[index]["clips"]
            assert clips.shape == (2, 3, 5, 32, 32)
        except VideoDecodeError:
            unreadable.add(record.video_id)
        assert time.monotonic() - begin < SECONDS_A_FILE
    # Damage between the chosen frames does not matter here; nothing good may be refused.
    assert not unreadable & good

    # The test itself, from a configuration.
    protocol = run(config(tmp_path, records))["protocol"]
    assert protocol["expected_videos"] == number
    assert protocol["missing_videos"] == number - protocol["decoded_videos"] == len(unreadable)
    lines = (tmp_path / "output/test/bad_videos.jsonl").read_text().splitlines()
    assert {json.loads(line)["path"] for line in lines} == {
        record.path for record in records if record.video_id in unreadable
    }


def config(folder, records):
    """A test of an untrained model; videos that are not decoded count as wrong."""
    lines = [f"{record.path} {index % 2}\n" for index, record in enumerate(records)]
    (folder / "all.csv").write_text("".join(lines))
    tree = {
        "TASK": "FinetuneTask",
        "BACKBONE": {"NAME": "TimmFrames", "model": "resnet10t"},
        "HEADS": {"classification": {"NAME": "ClassificationHead"}},
        "LOSSES": {"classification": {"NAME": "CrossEntropyLoss"}},
        "MODEL": {"NUM_CLASSES": 2},
        "DATA": {
            "PATH_TO_DATA_DIR": str(folder),
            "NUM_FRAMES": 5,
            "TARGET_FPS": float(FPS),
            "TEST_CROP_SIZE": 32,
            "ON_BAD_VIDEO": "count_wrong",
        },
        "DATA_LOADER": {"NUM_WORKERS": 0},
        "TRAIN": {"ENABLE": False},
        "TEST": {
            "DATASET": {"NAME": "PathLabelList", "split": "all"},
            "CHECKPOINT_FILE_PATH": "none",
            "NUM_ENSEMBLE_VIEWS": 2,
            "NUM_SPATIAL_CROPS": 1,
        },
        "TENSORBOARD": False,
        "NUM_GPUS": 0,
        "OUTPUT_DIR": str(folder / "output"),
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return prepare(path)


def test_undamaged_sources_are_all_readable(tmp_path):
    records = [VideoRecord(str(made.write(tmp_path)), made.file_name) for made in SOURCES]
    summary = check_videos(records, tmp_path / "check", progress=False)
    assert summary.bad == []


def test_mutations_are_the_same_for_the_same_seed(tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    first, second, other = (
        mutated_videos(folder, 24, seed) for folder, seed in zip(folders, (0, 0, 1), strict=True)
    )
    assert [path.name for path in first] == [path.name for path in second]
    assert [path.name for path in first] != [path.name for path in other]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
