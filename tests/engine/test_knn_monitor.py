"""The k-NN monitor in a run: its numbers, its log, and what stops it before a run starts."""

import json

import numpy as np
import pytest
import torch
from original_format import record, write_token_folder
from tiny_project import NUM_VIDEOS, make_tiny_project, pretrain_config, write_config

from vimpac_ext.config import ConfigError
from vimpac_ext.data import StoreMeta, TokenStore, TokenStoreWriter
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.assembly import build_task
from vimpac_ext.engine.checkpoint import newest_checkpoint, read_checkpoint
from vimpac_ext.engine.knn_monitor import KnnMonitor
from vimpac_ext.engine.requirements import MissingInputError

LABELS = [0, 1, 2, 1, 0, 2, 1]
LENGTHS = [6, 7, 2, 9, 3, 8, 5]


def write_queries(folder):
    """A store whose center views are as long as `LENGTHS` say, with labels."""
    meta = StoreMeta("AnyTokenizer", "A:1", 20, 8, 4.0, ("16top16", "16center16"), (2, 2))
    rng = np.random.default_rng(5)
    with TokenStoreWriter(folder, meta) as writer:
        for i, length in enumerate(LENGTHS):
            tokens = rng.integers(0, 20, (2, length, 2, 2))
            writer.add(f"q{i}", {"16top16": tokens[0], "16center16": tokens[1]})
    (folder / "videos.csv").write_text("".join(f"q{i} {k}\n" for i, k in enumerate(LABELS)))


@pytest.fixture
def project(tmp_path):
    """Pre-training with a monitor: bank and queries at another rate than the training."""
    make_tiny_project(tmp_path)
    write_queries(tmp_path / "bank")
    write_queries(tmp_path / "queries")
    config = pretrain_config(tmp_path)
    config["TRAIN"]["EVAL_PERIOD"] = 1
    config["KNN"] = {
        "ENABLE": True,
        "TRAIN": {"TOKEN_STORE": str(tmp_path / "bank")},
        "TEST": {"TOKEN_STORE": str(tmp_path / "queries")},
        "TARGET_FPS": 4.0,
        "SAMPLING_RATE": 2,
        "K": 3,
        "BATCH_SIZE": 4,
    }
    write_config(tmp_path / "monitored.yaml", config)
    return tmp_path


def events(folder, kind):
    lines = map(json.loads, (folder / "pretrain/metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["_type"] == kind]


def test_the_log_has_the_numbers_computed_by_hand(project):
    queries = project / "queries.txt"
    queries.write_text("q1\nq4\nq5\nq6\n")
    bank = project / "bank.txt"
    bank.write_text("q0\nq2\nq3\nq6\n")
    overrides = ["KNN.TRAIN.TOKEN_SPLIT_FILE", str(bank), "KNN.TEST.TOKEN_SPLIT_FILE", str(queries)]
    loaded = prepare(project / "monitored.yaml", overrides)
    run(loaded)
    found = events(project, "knn_epoch")
    assert [line["update"] for line in found] == [2, 4]
    task = build_task(loaded.cfg).eval()
    checkpoint = newest_checkpoint(project / "pretrain/checkpoints")
    task.load_state_dict(read_checkpoint(checkpoint)["model_state"])
    store = TokenStore(project / "queries")

    def feature(number):
        last = max(LENGTHS[number] + 1 - 6, 0)  # of a start: 3 frames, every 2nd
        frames = range(last // 2, min(last // 2 + 6, LENGTHS[number]), 2)
        clip = np.full((3, 2, 2), 21)  # PAD
        clip[: len(frames)] = store.read(f"q{number}", "16center16", frames)
        with torch.no_grad():
            cls = task.backbone(torch.from_numpy(clip)[None])["cls"][0].double().numpy()
        return cls / np.linalg.norm(cls)

    in_bank = {number: feature(number) for number in (0, 2, 3, 6)}
    wrong = 0
    for number in (1, 4, 5, 6):
        cosines = {other: feature(number) @ vector for other, vector in in_bank.items()}
        scores = np.zeros(3)
        for other in sorted(cosines, key=lambda other: -cosines[other])[:3]:
            scores[LABELS[other]] += np.exp(cosines[other] / 0.07)
        wrong += scores.argmax() != LABELS[number]
    last = found[-1]
    assert last["top1_err"] == pytest.approx(100 * wrong / 4)
    assert last["top5_err"] == 0.0  # there are three classes
    assert (last["bank_videos"], last["query_videos"]) == (4, 4)


def test_a_video_is_its_own_nearest_neighbour(project):
    run(prepare(project / "monitored.yaml", ["KNN.K", "1"]))
    assert [line["top1_err"] for line in events(project, "knn_epoch")] == [0.0, 0.0]


def test_watching_changes_nothing_in_the_training(project):
    run(prepare(project / "monitored.yaml", ["KNN.CLIP", "random"]))
    watched = [line["loss"] for line in events(project, "train_iter")]
    run(prepare(project / "monitored.yaml", ["KNN.ENABLE", "False", "TRAIN.AUTO_RESUME", "False"]))
    assert [line["loss"] for line in events(project, "train_iter")] == watched
    assert len(watched) == 4
    assert events(project, "knn_epoch") == []


def test_random_clips_are_drawn_anew_for_each_evaluation(project):
    loaded = prepare(project / "monitored.yaml", ["KNN.CLIP", "random"])
    task = build_task(loaded.cfg).eval()
    monitor = KnnMonitor(loaded.cfg, torch.device("cpu"), task)
    features = [monitor._features(task.backbone, monitor.queries, u)[0] for u in (1, 1, 2)]
    assert torch.equal(features[0], features[1])
    changed = (features[0] != features[2]).any(dim=1)
    assert changed.any()
    assert not changed[LENGTHS.index(2)]  # too short for a choice


def test_annotations_and_the_authors_folders_serve_too(project):
    """DATASET with a root of its own; labels of the authors' records."""
    name = "dalle_ucf101_train_test_fps2_hflip0_16center16"
    values = {f"v{i}": record(np.full((4, 2, 2), i), label=i % 3) for i in range(6)}
    write_token_folder(project / "tokens" / name, values)
    split = project / "split.txt"
    split.write_text("v0.avi\nv4.avi\n")
    overrides = [
        *("DATA.VOCAB_SIZE", "8192", "TRAIN.TOKEN_STORE", str(project / "tokens")),
        *("TRAIN.DATASET.NAME", "", "TRAIN.BATCH_SIZE", "3", "KNN.TARGET_FPS", "2"),
        *("KNN.TRAIN.TOKEN_STORE", str(project / "tokens"), "KNN.SAMPLING_RATE", "1"),
        *("KNN.TEST.TOKEN_STORE", f"[{project / 'tokens' / name}]", "KNN.K", "1"),
        *("KNN.TEST.TOKEN_SPLIT_FILE", str(split)),
    ]
    run(prepare(project / "monitored.yaml", overrides))
    line = events(project, "knn_epoch")[-1]
    assert (line["bank_videos"], line["query_videos"], line["top1_err"]) == (6, 2, 0.0)

    overrides = [
        *("KNN.TRAIN.DATASET.NAME", "PathLabelList", "KNN.TRAIN.DATASET.split", "train"),
        *("KNN.TRAIN.DATASET.root", str(project / "data"), "KNN.TARGET_FPS", "2"),
        *("KNN.TRAIN.TOKEN_STORE", str(project / "tokens_train"), "KNN.SAMPLING_RATE", "1"),
        *("KNN.TEST.TOKEN_STORE", str(project / "tokens_train"), "TRAIN.AUTO_RESUME", "False"),
        *("KNN.TEST.DATASET.NAME", "PathLabelList", "KNN.TEST.DATASET.split", "test"),
    ]
    run(prepare(project / "monitored.yaml", overrides))
    assert events(project, "knn_epoch")[-1]["bank_videos"] == NUM_VIDEOS
    with pytest.raises(MissingInputError, match="PathLabelList: folder 'nowhere' not found"):
        run(prepare(project / "monitored.yaml", [*overrides, "KNN.TRAIN.DATASET.root", "nowhere"]))


def test_mistakes_stop_before_the_run(project):
    path = project / "monitored.yaml"
    with pytest.raises(ConfigError, match="TRAIN.EVAL_PERIOD.*since KNN.ENABLE is True, found 0"):
        prepare(path, ["TRAIN.EVAL_PERIOD", "0"])
    with pytest.raises(ConfigError, match="KNN.TEST.TOKEN_STORE.* must be given"):
        prepare(path, ["KNN.TEST.TOKEN_STORE", ""])
    with pytest.raises(ConfigError, match="KNN.CLIP.*middle, random, found 'first'"):
        prepare(path, ["KNN.CLIP", "first"])
    with pytest.raises(
        MissingInputError, match="KNN.TEST.TOKEN_STORE: no token store in 'nowhere'"
    ):
        run(prepare(path, ["KNN.TEST.TOKEN_STORE", "nowhere"]))
    with pytest.raises(ValueError, match=r"fps is 4.0, expected 2.0"):
        run(prepare(path, ["KNN.TARGET_FPS", "2.0"]))
    (project / "queries" / "videos.csv").unlink()
    with pytest.raises(ValueError, match="KNN.TEST: video 'q0' has no label"):
        run(prepare(path))
    assert not (project / "pretrain").exists()
