"""Backbones that read pixels, from video files to a test result."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml
from made_videos import MadeVideo
from tiny_project import make_tiny_project

from vimpac_ext import compat
from vimpac_ext.config import ConfigError
from vimpac_ext.data import FrameClips, spatial_views
from vimpac_ext.data.annotations import PathLabelList
from vimpac_ext.data.decode import VideoDecodeError
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.assembly import build_task, build_train_clips

NUM_CLASSES = 3


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Four videos, and a fifth that only the list "with_bad.csv" has and that is none."""
    root = tmp_path_factory.mktemp("videos")
    for i in range(4):
        MadeVideo(f"{i}.mp4", times=range(0, 40 + 10 * i)).write(root)
    (root / "bad.mp4").write_bytes(b"no video")
    lines = [f"{i}.mp4 {i % NUM_CLASSES}" for i in range(4)]
    (root / "good.csv").write_text("\n".join(lines) + "\n")
    (root / "with_bad.csv").write_text("\n".join([*lines, "bad.mp4 1"]) + "\n")
    return root


def merged(base, changes):
    both = {**base, **changes}
    return {
        key: merged(base[key], value)
        if isinstance(value, dict) and isinstance(base.get(key), dict)
        else value
        for key, value in both.items()
    }


def config(videos, folder, backbone, split="good", **changes):
    content = {
        "TASK": "FinetuneTask",
        "BACKBONE": backbone,
        "HEADS": {"classification": {"NAME": "ClassificationHead"}},
        "LOSSES": {"classification": {"NAME": "CrossEntropyLoss"}},
        "MODEL": {"NUM_CLASSES": NUM_CLASSES},
        "DATA": {
            "PATH_TO_DATA_DIR": str(videos),
            "NUM_FRAMES": 4,
            "TARGET_FPS": 8.0,
            "TRAIN_CROP_SIZE": 32,
            "TEST_CROP_SIZE": 32,
        },
        "DATA_LOADER": {"NUM_WORKERS": 0},
        "TRAIN": {"DATASET": {"NAME": "PathLabelList", "split": split}, "BATCH_SIZE": 2},
        "TEST": {
            "DATASET": {"NAME": "PathLabelList", "split": split},
            "NUM_ENSEMBLE_VIEWS": 2,
            "NUM_SPATIAL_CROPS": 3,
            "BATCH_SIZE": 12,
        },
        "SOLVER": {"MAX_EPOCH": 1},
        "TENSORBOARD": False,
        "NUM_GPUS": 0,
        "OUTPUT_DIR": str(folder / "output"),
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(merged(content, changes)))
    return prepare(path)


FRAMES = {"NAME": "TimmFrames", "model": "resnet10t"}


def test_trains_and_tests(videos, tmp_path):
    result = run(config(videos, tmp_path, FRAMES))
    assert (result["protocol"]["expected_videos"], result["protocol"]["decoded_videos"]) == (4, 4)
    assert result["protocol"]["tokenizer"] == "none"
    assert list(tmp_path.glob("output/checkpoints/*.pyth"))


def test_a_video_that_is_none_is_counted(videos, tmp_path):
    data = {"ON_BAD_VIDEO": "count_wrong"}
    result = run(config(videos, tmp_path, FRAMES, split="with_bad", DATA=data))
    assert (result["protocol"]["expected_videos"], result["protocol"]["decoded_videos"]) == (5, 4)
    lines = (tmp_path / "output/test/bad_videos.jsonl").read_text().splitlines()
    assert [json.loads(line)["video_id"] for line in lines] == ["bad"]
    rows = list(csv.DictReader((tmp_path / "output/test/predictions.csv").read_text().splitlines()))
    assert [row["video_id"] for row in rows if row["decoded"] == "0"] == ["bad"]


def test_a_video_that_is_none_stops_the_run_by_default(videos, tmp_path):
    loaded = config(
        videos,
        tmp_path,
        FRAMES,
        split="with_bad",
        TRAIN={"ENABLE": False},
        TEST={"CHECKPOINT_FILE_PATH": "none"},
    )
    with pytest.raises(VideoDecodeError, match=r"bad\.mp4"):
        run(loaded)


def test_a_published_model_scores_as_when_called_by_hand(videos, tmp_path):
    """The evaluator against pytorchvideo's own model on the same clips, view by view."""
    compat.install()
    from pytorchvideo.models import hub

    torch.manual_seed(0)
    options = {"head_pool_kernel_size": (2, 1, 1), "model_num_class": NUM_CLASSES}
    model = hub.c2d_r50(**options).eval()
    for name, value in model.named_buffers():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    torch.save(model.state_dict(), tmp_path / "c2d.pyth")
    backbone = {
        "NAME": "PytorchVideoBackbone",
        "model": "c2d_r50",
        "weights": str(tmp_path / "c2d.pyth"),
        "options": {"head_pool_kernel_size": [2, 1, 1], "model_num_class": NUM_CLASSES},
    }
    loaded = config(
        videos,
        tmp_path,
        backbone,
        HEADS={"classification": {"pretrained": True}},
        TRAIN={"ENABLE": False},
        TEST={"CHECKPOINT_FILE_PATH": "none"},
    )
    run(loaded)
    scores = np.load(tmp_path / "output/test/scores.npz")["scores"]
    clips = FrameClips(
        PathLabelList(str(videos), "good").records,
        views=spatial_views("three_crops", 32),
        num_frames=4,
        fps=8.0,
        mode="uniform",
        num_temporal_views=2,
    )
    for index in range(4):
        with torch.no_grad():
            logits = model((clips[index]["clips"] - 0.45) / 0.225)
        expected = logits.softmax(dim=-1).mean(dim=0).numpy()
        np.testing.assert_allclose(scores[index], expected, atol=1e-5)
    assert np.ptp(scores, axis=0).max() > 1e-3  # the videos differ


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("TimmFrame", "'TimmFrame' is not registered in BACKBONES; did you mean 'TimmFrames'"),
        ({"NAME": "PytorchVideoBackbone", "model": "slow_r5"}, "choose from .*slow_r50"),
        ({"NAME": "PytorchVideoBackbone", "model": "slow_r50"}, "or BACKBONE.global_pool True"),
        ({"NAME": "TimmSpaceTime", "model": "vit_tiny_patch14"}, "similar: .*vit_"),
        ({**FRAMES, "weights": "nowhere.pth"}, "no file at .*nowhere.pth"),
    ],
)
def test_a_model_that_cannot_be_built_stops_the_run_before_any_work(
    videos, tmp_path, backbone, message
):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(config(videos, tmp_path, backbone))
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "backbone",
    [
        {"NAME": "TimmFrames", "model": "vit_tiny_patch16_224", "options": {"depth": 1}},
        {"NAME": "VimpacTransformer", "embed_dim": 64, "num_heads": 2, "num_layers": 1},
    ],
)
def test_a_test_crop_that_the_model_cannot_take_is_refused_before_training(
    videos, tmp_path, backbone
):
    loaded = config(
        videos,
        tmp_path,
        backbone,
        DATA={"TEST_CROP_SIZE": 64, "VOCAB_SIZE": 64, "TOKENS": "online"},
        TOKENIZER="VQVAETokenizer",
    )
    with pytest.raises(ValueError, match=r"Set DATA.TEST_CROP_SIZE to DATA.TRAIN_CROP_SIZE \(32\)"):
        run(loaded)
    assert not (tmp_path / "output").exists()


def test_random_views_of_stored_tokens_are_refused(tmp_path):
    folder = make_tiny_project(tmp_path)
    with pytest.raises(ConfigError, match="AUG.ENABLE True changes frames"):
        run(prepare(folder / "pretrain.yaml", ["AUG.ENABLE", "True"]))


def test_random_views_are_drawn_anew_in_each_epoch(videos, tmp_path):
    loaded = config(videos, tmp_path, FRAMES, AUG={"ENABLE": True, "RAND_AUGMENT_OPERATIONS": 1})
    records = PathLabelList(str(videos), "good").records
    task = build_task(loaded.cfg)
    clips = build_train_clips(loaded.cfg, task, records)
    first, again, other = (clips[key]["clips"] for key in ((0, 1), (0, 1), (1, 1)))
    assert first.shape == (1, 3, 4, 32, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_training_goes_on_when_a_video_is_none(videos, tmp_path, caplog):
    loaded = config(
        videos,
        tmp_path,
        FRAMES,
        split="with_bad",
        DATA={"ON_BAD_VIDEO": "skip"},
        TEST={"ENABLE": False},
        SOLVER={"MAX_EPOCH": 4},  # a batch of an epoch's two leaves one of the five videos out
    )
    run(loaded)
    assert caplog.text.count("another video takes the place of one that is bad") == 1
    assert list(tmp_path.glob("output/checkpoints/*.pyth"))
    (line,) = (tmp_path / "output/bad_videos.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["video_id"], entry["path"]) == ("bad", str(videos / "bad.mp4"))
    assert entry["reason"].startswith(f"cannot decode {videos / 'bad.mp4'}: ")


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_bad_videos_are_listed_once_by_workers_and_after_a_resume(videos, tmp_path):
    def train(epochs, **train):
        loaded = config(
            videos,
            tmp_path,
            FRAMES,
            split="with_bad",
            DATA={"ON_BAD_VIDEO": "skip"},
            DATA_LOADER={"NUM_WORKERS": 2},
            TRAIN=train,
            TEST={"ENABLE": False},
            SOLVER={"MAX_EPOCH": epochs},
        )
        run(loaded)
        return [json.loads(line)["video_id"] for line in file.read_text().splitlines()]

    file = tmp_path / "output/bad_videos.jsonl"
    assert train(4) == ["bad"]
    with file.open("a") as stream:
        stream.write('{"video_id": "other", "path": "x", "reason": "y"}\n')
    assert sorted(train(8)) == ["bad", "other"]  # resumed
    assert train(4, AUTO_RESUME=False) == ["bad"]  # begun anew
