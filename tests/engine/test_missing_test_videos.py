"""Test videos that the token store does not have: counted, listed, never lost without a word."""

import csv
import json

import numpy as np
import pytest
from processes import in_processes
from tiny_project import CLASSES, NUM_VIDEOS, finetune_config, make_tiny_project, write_config

from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.devices import device_of
from vimpac_ext.engine.export import export
from vimpac_ext.engine.knn_monitor import evaluate_knn

LOST = ["clips/lost_a", "clips/lost_b"]


@pytest.fixture
def config(tmp_path):
    """A test without annotation files, whose split file lists two videos more than there are."""
    make_tiny_project(tmp_path)
    names = [f"clips/video_{i}" for i in range(NUM_VIDEOS)]
    lines = [f"{name} {i % CLASSES}\n" for i, name in enumerate(names)]
    (tmp_path / "tokens_test/videos.csv").write_text("".join(lines))
    (tmp_path / "split.txt").write_text("\n".join([LOST[1], *names, f"{LOST[0]}.mp4"]) + "\n")
    content = finetune_config(tmp_path)
    content["TRAIN"]["CHECKPOINT_FILE_PATH"] = ""
    content["TEST"] |= {
        "DATASET": {"NAME": ""},
        "TOKEN_SPLIT_FILE": str(tmp_path / "split.txt"),
    }
    content["SOLVER"]["MAX_EPOCH"] = 1
    content["DATA"]["ON_BAD_VIDEO"] = "skip"
    write_config(tmp_path / "config.yaml", content)
    return tmp_path / "config.yaml"


def listed(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def rows(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return {row["video_id"]: row for row in csv.DictReader(file)}


def test_they_are_counted_and_listed_without_annotation_files(config, tmp_path):
    result = run(prepare(config))
    protocol, folder = result["protocol"], tmp_path / "finetune/test"
    assert (protocol["expected_videos"], protocol["decoded_videos"]) == (NUM_VIDEOS + 2, NUM_VIDEOS)
    assert (protocol["missing_videos"], protocol["missing_views"]) == (2, 12)
    assert protocol["scored_videos"] == NUM_VIDEOS
    bad = listed(folder / "bad_videos.jsonl")
    assert [entry["video_id"] for entry in bad] == LOST
    assert all(f"no tokens, or not of all views, in {tmp_path}" in e["reason"] for e in bad)
    found = rows(folder)
    assert len(found) == NUM_VIDEOS + 2
    for name in LOST:
        known = [found[name][column] for column in ("label", "label_name", "decoded", "correct")]
        assert known == ["", "", "0", ""]
    right = [row["correct"] for row in found.values() if row["decoded"] == "1"].count("1")
    assert result["top1"] == pytest.approx(100 * right / NUM_VIDEOS)
    with (folder / "per_class.csv").open(newline="") as file:
        counts = [(int(row["videos"]), int(row["scored"])) for row in csv.DictReader(file)]
    assert counts == [(2, 2)] * CLASSES
    # Of a list that the store has whole, the result is another one: they cannot be compared.
    whole = run(prepare(config, ["TRAIN.ENABLE", "False", "TEST.TOKEN_SPLIT_FILE", ""]))
    assert whole["top1"] == result["top1"]
    assert whole["protocol_id"] != result["protocol_id"]
    assert not (folder / "bad_videos.jsonl").exists()


def test_their_classes_are_not_known_so_they_cannot_count_as_wrong(config):
    for rule in ("count_wrong", "error"):
        with pytest.raises(ValueError, match=r"2 of 10 videos have no tokens.*clips/lost_a"):
            run(prepare(config, ["DATA.ON_BAD_VIDEO", rule]))


def only_the_test(config):
    return run(prepare(config, ["TRAIN.ENABLE", "False"]))


def test_two_processes_list_them_once(config, tmp_path):
    expected = run(prepare(config))
    assert in_processes(2, only_the_test, config) == [expected, expected]
    bad = listed(tmp_path / "finetune/test/bad_videos.jsonl")
    assert [entry["video_id"] for entry in bad] == LOST


def test_an_export_has_rows_for_them(config, tmp_path):
    run(prepare(config))
    export(prepare(config), tmp_path / "scores.npz")
    with np.load(tmp_path / "scores.npz", allow_pickle=False) as file:
        missing = np.isin(file["video_ids"], LOST)
        assert missing.sum() == 2
        assert file["labels"][missing].tolist() == [-1, -1]
        assert not file["decoded"][missing].any()
        assert np.isnan(file["scores"]).all(axis=1).tolist() == missing.tolist()
    bad = listed(tmp_path / "scores.npz.bad_videos.jsonl")
    assert [entry["video_id"] for entry in bad] == LOST


def test_knn_tells_how_many_there_should_be(config, tmp_path):
    words = ["KNN.ENABLE", "True", "TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", "none"]
    for part in ("TRAIN", "TEST"):
        words += [f"KNN.{part}.TOKEN_STORE", str(tmp_path / "tokens_test")]
    words += ["KNN.TEST.TOKEN_SPLIT_FILE", str(tmp_path / "split.txt")]
    loaded = prepare(config, words)
    result = evaluate_knn(loaded.cfg, device_of(loaded.cfg), tmp_path / "knn")
    assert (result["query_videos"], result["expected_query_videos"]) == (8, 10)
    assert (result["bank_videos"], result["expected_bank_videos"]) == (8, 8)
    assert result["top1"] == 100.0  # the bank has each query


def test_those_of_a_list_with_labels_are_listed_too(config, tmp_path):
    with (tmp_path / "data/test.csv").open("a") as file:
        file.write("clips/lost.mp4 3\n")
    words = ["TEST.DATASET.NAME", "PathLabelList", "TEST.DATASET.split", "test"]
    words += ["TEST.TOKEN_SPLIT_FILE", ""]
    run(prepare(config, [*words, "DATA.ON_BAD_VIDEO", "count_wrong"]))
    folder = tmp_path / "finetune/test"
    (entry,) = listed(folder / "bad_videos.jsonl")
    assert (entry["video_id"], entry["path"]) == ("clips/lost", f"{tmp_path}/data/clips/lost.mp4")
    assert rows(folder)["clips/lost"]["label"] == "3"
