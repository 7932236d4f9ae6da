"""Trainings on video files of which half cannot be decoded."""

import json

import pytest
import torch
from processes import in_processes
from video_project import TRANSFORMER, VOCAB_SIZE, make_video_project, video_config

from vimpac_ext.data.bad_videos import read_bad_videos
from vimpac_ext.data.decode import VideoDecodeError
from vimpac_ext.engine import prepare, run, training_pictures
from vimpac_ext.engine.assembly import build_task
from vimpac_ext.engine.training import training_clips
from vimpac_ext.engine.training_pictures import TrainingPictures

ONLINE = {
    "BACKBONE": {**TRANSFORMER, "dropout": 0.0},
    "TOKENIZER": {"NAME": "VQVAETokenizer"},
    "DATA": {"TOKENS": "online", "VOCAB_SIZE": VOCAB_SIZE},
}
CONTRAST = {
    **ONLINE,
    "TASK": {"NAME": "PretrainTask"},
    "MODEL": {"NUM_CLASSES": 0},
    "HEADS": {
        "classification": None,
        "contrast": {"NAME": "ProjectionHead", "hidden_dim": 8, "output_dim": 4, "norm": "ln"},
    },
    "LOSSES": {"classification": None, "contrast": {"NAME": "InfoNCELoss"}},
}
TOKENIZER = {
    "TASK": {"NAME": "TrainTokenizerTask"},
    "TOKENIZER": {
        "NAME": "VQVAETokenizer",
        "weights": None,
        "hidden_dim": 16,
        "code_dim": 4,
    },
    "BACKBONE": {"NAME": ""},
    "DATA": {"VOCAB_SIZE": 16},
    "MODEL": {"NUM_CLASSES": 0},
    "HEADS": {"classification": None},
    "LOSSES": {"classification": None},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Twelve videos and as many files that are none, in the list "half"."""
    project = make_video_project(tmp_path_factory.mktemp("videos"))
    lines = (project.root / "train.csv").read_text().splitlines()
    for number in range(len(lines)):
        (project.root / f"bad_{number}.mp4").write_bytes(b"no video")
        lines.append(f"bad_{number}.mp4 {number % 3}")
    (project.root / "half.csv").write_text("\n".join(lines) + "\n")
    return project


def train(path):
    run(prepare(path))


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["_type"] == "train_iter"]


@pytest.mark.parametrize(
    ("changes", "micro_batch_size"),
    [(ONLINE, 2), (CONTRAST, 4), (TOKENIZER, 4)],
    ids=["classes", "pairs", "tokenizer"],
)
def test_two_processes_train_as_one_although_videos_are_bad(project, changes, micro_batch_size):
    """The share of a process is one or two videos, so that all of it is often bad."""

    def config(name):
        more = {
            "DATA": {**changes["DATA"], "ON_BAD_VIDEO": "skip"},
            "TRAIN": {
                "DATASET": {"split": "half"},
                "BATCH_SIZE": 4,
                "MICRO_BATCH_SIZE": micro_batch_size,
            },
            "TEST": {"ENABLE": False},
            "LOG_PERIOD": 1,
        }
        return video_config(project, name, **{**changes, **more})

    name = f"{changes.get('TASK', {}).get('NAME', '')}_{micro_batch_size}"
    train(config(f"one{name}"))
    in_processes(2, train, config(f"two{name}"))
    expected = losses(project.folder / f"one{name}")
    assert len(expected) == 6
    assert losses(project.folder / f"two{name}") == pytest.approx(expected, rel=1e-3)
    listed = [
        read_bad_videos(project.folder / f"{n}{name}/bad_videos.jsonl") for n in ("one", "two")
    ]
    assert listed[0] == listed[1]
    assert {f"bad_{number}" for number in range(12)} == set(listed[0])


def test_bad_videos_are_counted_at_the_end(project, caplog):
    words = ["TRAIN.DATASET.split", "half", "DATA.ON_BAD_VIDEO", "skip", "TEST.ENABLE", "False"]
    run(prepare(video_config(project, "counted"), words))
    assert "12 of 24 training videos could not be decoded; others took their places" in caplog.text
    assert caplog.text.count("another video takes the place") == 12


def test_pictures_while_training_are_of_videos_that_can_be_decoded(project, monkeypatch):
    drawn = []
    monkeypatch.setattr(training_pictures, "draw_sheet", lambda blocks: drawn.append(blocks))
    (project.root / "late.csv").write_text("bad_0.mp4 0\n0.mp4 0\nbad_1.mp4 1\n1.mp4 1\n")
    token = {"token": {"NAME": "MaskedTokenHead"}}
    changes = {
        **CONTRAST,
        "DATA": {**ONLINE["DATA"], "ON_BAD_VIDEO": "skip"},
        "HEADS": {"classification": None, **token},
        "LOSSES": {"classification": None, "token": {"NAME": "MaskedTokenLoss"}},
        "MASKER": {"NAME": "BlockMasker", "num_blocks": 3},
        "TRAIN": {"DATASET": {"split": "late"}, "BATCH_SIZE": 2},
        "TEST": {"ENABLE": False},
        "TENSORBOARD": True,
        "TENSORBOARD_PICTURES_PERIOD": 1,
    }
    cfg = prepare(video_config(project, "pictures", **changes)).cfg
    task = build_task(cfg)
    clips = training_clips(cfg, task)
    TrainingPictures(cfg, torch.device("cpu"), task, clips).draw(task)
    assert [block.title for block in drawn[0]] == ["0", "1"]
    clips.records = [clips.records[2]]
    with pytest.raises(VideoDecodeError, match=r"bad_1\.mp4"):
        TrainingPictures(cfg, torch.device("cpu"), task, clips)
