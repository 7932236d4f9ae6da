"""Pictures while a pre-training runs."""

import json
import shutil

import numpy as np
import pytest
import torch
from drawn_project import VOCAB_SIZE
from processes import free_port, run_processes
from tiny_project import NUM_VIDEOS, make_tiny_project

from vimpac_ext.config import ConfigError
from vimpac_ext.data import StoreMeta, TokenStore, TokenStoreWriter
from vimpac_ext.engine import prepare, run, training_pictures
from vimpac_ext.engine.assembly import build_dataset, build_task, build_train_clips
from vimpac_ext.engine.placement import Placement
from vimpac_ext.engine.processes import RunRequest, run_as
from vimpac_ext.engine.training_pictures import TrainingPictures
from vimpac_ext.tokenizers import VQVAETokenizer

PERIOD = "TENSORBOARD_PICTURES_PERIOD"


@pytest.fixture
def project(tmp_path):
    """A tiny pre-training whose tokens a tokenizer can draw; the first video is too short."""
    configs = make_tiny_project(tmp_path)
    torch.manual_seed(0)
    tokenizer = VQVAETokenizer(None, vocab_size=VOCAB_SIZE, hidden_dim=8, code_dim=4)
    tokenizer.save(tmp_path / "tokenizer.safetensors")
    shutil.rmtree(tmp_path / "tokens_train")
    meta = StoreMeta(
        "VQVAETokenizer", tokenizer.fingerprint, VOCAB_SIZE, 8, 2.0, ("16center16",), (2, 2)
    )
    rng = np.random.default_rng(0)
    with TokenStoreWriter(tmp_path / "tokens_train", meta) as writer:
        for i in range(NUM_VIDEOS):
            tokens = rng.integers(0, VOCAB_SIZE, (6 if i else 2, 2, 2))
            writer.add(f"clips/video_{i}", {"16center16": tokens})
    return configs / "pretrain.yaml"


def overrides_of(project, *overrides):
    weights = str(project.parent.parent / "tokenizer.safetensors")
    tokenizer = ["TOKENIZER.NAME", "VQVAETokenizer", "TOKENIZER.weights", weights]
    return [*tokenizer, "TENSORBOARD", "True", *overrides]


def load(project, *overrides):
    return prepare(project, overrides_of(project, *overrides))


def test_the_picture_shows_tokens_mask_and_answer(project, monkeypatch):
    cfg = load(project).cfg
    task = build_task(cfg)
    clips = build_train_clips(cfg, task, build_dataset(cfg, "TRAIN").records)
    pictures = TrainingPictures(cfg, torch.device("cpu"), task, clips)
    monkeypatch.setattr(training_pictures, "draw_sheet", lambda blocks: blocks)
    first, second = pictures.draw(task)
    assert (first.title, second.title) == ("clips/video_0", "clips/video_1")
    tokenizer = VQVAETokenizer(cfg.TOKENIZER.weights)
    store = TokenStore(cfg.TRAIN.TOKEN_STORE)
    hidden = 0
    for block, video in ((first, 0), (second, 1)):
        tokens, masked, answer = (row.images for row in block.rows)
        clip = clips[video]["clips"][0]
        real = clip[clip[:, 0, 0] < VOCAB_SIZE]  # without padding
        assert len(tokens) == len(real) == (2 if video == 0 else 3)
        if video == 0:
            stored = store.read("clips/video_0", "16center16", range(2))
            assert torch.equal(real, torch.from_numpy(stored.astype(np.int64)))
        pixels = tokenizer.decode(real).permute(0, 2, 3, 1)
        assert np.array_equal(tokens, (pixels * 255).round().byte().numpy())
        squares = masked.reshape(len(real), 2, 8, 2, 8, 3)
        grey = (squares == 128).all(axis=(2, 4, 5))
        seen = ~np.kron(grey, np.ones((1, 8, 8), bool))
        assert np.array_equal(masked[seen], tokens[seen])
        assert answer.shape == tokens.shape
        hidden += grey.sum()
        assert f"({grey.mean():.0%} hidden)" in block.rows[1].label
    assert hidden > 0
    again = pictures.draw(task)
    assert all(
        np.array_equal(a.images, b.images)
        for old, new in zip((first, second), again, strict=True)
        for a, b in zip(old.rows, new.rows, strict=True)
    )


def test_a_run_draws_every_so_many_epochs_and_trains_as_without(project):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = project.parent.parent / "pretrain"

    def losses():
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    run(load(project, PERIOD, "2", "SOLVER.MAX_EPOCH", "3"))
    drawn = losses()
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    images = events.Images("masked_and_completed")
    assert [image.step for image in images] == [4, 6]  # of two updates an epoch, and the last
    assert min(images[0].width, images[0].height) > 100
    run(load(project, "SOLVER.MAX_EPOCH", "3", "TRAIN.AUTO_RESUME", "False"))
    assert losses() == drawn


@pytest.mark.slow
def test_two_processes_draw_the_picture_of_one(project):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pictures = []
    for name, count, parallel in (("one", 1, "ddp"), ("two", 2, "ddp"), ("parts", 2, "fsdp")):
        overrides = overrides_of(project, PERIOD, "1", "SOLVER.MAX_EPOCH", "1")
        overrides += ["TRAIN.PARALLEL", parallel, "TRAIN.EMA_DECAY", "0.5"]
        # No dropout: it differs between the processes, and so would the weights.
        overrides += ["OUTPUT_DIR", str(project.parent / name), "BACKBONE.dropout", "0.0"]
        port = free_port()
        places = [
            Placement(rank, count, rank, "127.0.0.1", port, rank == 0, "the test")
            for rank in range(count)
        ]
        request = RunRequest((str(project),), tuple(overrides))
        ended = run_processes(run_as, [(place, request) for place in places])
        assert [process.code for process in ended] == [0] * count, ended
        folder = project.parent / name / "tensorboard"
        events = EventAccumulator(str(folder), size_guidance={"images": 0})
        events.Reload()
        (image,) = events.Images("masked_and_completed")
        pictures.append(image.encoded_image_string)
    assert pictures[0] == pictures[1] == pictures[2]


def test_what_cannot_be_drawn_is_refused_before_the_run(project, monkeypatch):
    with pytest.raises(ConfigError, match=f"{PERIOD}.* 0 without TENSORBOARD"):
        load(project, PERIOD, "1", "TENSORBOARD", "False")
    with pytest.raises(ConfigError, match="set TOKENIZER.NAME"):
        run(load(project, PERIOD, "1", "TOKENIZER.NAME", ""))
    more = ["TRAIN.CHECKPOINT_FILE_PATH", "", "TEST.ENABLE", "False"]
    finetune = load(project.parent / "finetune.yaml", PERIOD, "1", *more)
    with pytest.raises(ConfigError, match="hides none"):
        run(finetune)
    monkeypatch.delattr(VQVAETokenizer, "decode")
    with pytest.raises(ConfigError, match="VQVAETokenizer cannot draw tokens"):
        run(load(project, PERIOD, "1"))
    assert not (project.parent.parent / "pretrain").exists()
