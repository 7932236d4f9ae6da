"""Whole runs through the public functions, on random tokens."""

import csv
import json
import logging

import numpy as np
import pytest
import torch
from tiny_project import NUM_VIDEOS, make_tiny_project, write_store

from vimpac_ext.build import BuildError
from vimpac_ext.config import ConfigError
from vimpac_ext.data import TokenStore
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.assembly import build_task
from vimpac_ext.engine.checkpoint import CheckpointError, newest_checkpoint, read_checkpoint
from vimpac_ext.engine.requirements import MissingInputError


@pytest.fixture
def project(tmp_path):
    return make_tiny_project(tmp_path)


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["update"]: line["loss"] for line in lines if line["_type"] == "train_iter"}


def test_pretrain_then_finetune_then_multi_view_test(project, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert run(prepare(project / "pretrain.yaml")) == {}
    result = run(prepare(project / "finetune.yaml", ["SOLVER.MAX_EPOCH", "40"]))
    assert result["top1"] == 100.0  # classes have tokens of their own
    assert json.loads((tmp_path / "finetune/test/result.json").read_text()) == result

    last = json.loads((tmp_path / "finetune/metrics.jsonl").read_text().splitlines()[-1])
    assert (last["_type"], last["top1_acc"], last["update"]) == ("test_final", "100.00", 80)

    # The report of the weights: the backbone came from pre-training, the heads did not.
    report = next(r.getMessage() for r in caplog.records if "weights from" in r.getMessage())
    assert "26 loaded, 0 resized" in report
    assert "skipped: heads.contrast" in report
    assert "missing: heads.classification.linear.weight" in report
    # The protocol says what was tested.
    protocol = result["protocol"]
    assert (protocol["temporal_views"], protocol["spatial_crops"]) == (2, 3)
    assert (protocol["expected_videos"], protocol["decoded_videos"]) == (NUM_VIDEOS, NUM_VIDEOS)
    assert protocol["tokenizer"] == "A:1"


def test_scores_are_the_mean_softmax_over_views_computed_by_hand(project, tmp_path):
    loaded = prepare(project / "finetune.yaml", ["TRAIN.CHECKPOINT_FILE_PATH", ""])
    run(loaded)
    task = build_task(loaded.cfg).eval()
    path = newest_checkpoint(tmp_path / "finetune/checkpoints")
    task.load_state_dict(read_checkpoint(path)["model_state"])
    store = TokenStore(tmp_path / "tokens_test")
    with (tmp_path / "finetune/test/predictions.csv").open() as file:
        rows = {row["video_id"]: row for row in csv.DictReader(file)}
    for i in range(NUM_VIDEOS):
        video_id = f"clips/video_{i}"
        probabilities = []
        for view in store.meta.views:
            for start in (0, 3):  # 6 frames, clips of 3: first and last
                frames = store.read(video_id, view, range(start, start + 3))
                with torch.no_grad():
                    probabilities.append(task.predict(torch.from_numpy(frames)[None])[0].numpy())
        scores = np.mean(probabilities, axis=0)
        assert int(rows[video_id]["prediction"]) == scores.argmax()
        assert float(rows[video_id]["probability"]) == pytest.approx(scores.max(), abs=1e-4)


def test_evaluation_while_training_is_logged(project, tmp_path):
    overrides = ["TRAIN.CHECKPOINT_FILE_PATH", "", "TRAIN.EVAL_PERIOD", "1"]
    run(prepare(project / "finetune.yaml", [*overrides, "SOLVER.MAX_EPOCH", "20"]))
    text = (tmp_path / "finetune/metrics.jsonl").read_text().splitlines()
    lines = [line for line in map(json.loads, text) if line["_type"] == "val_epoch"]
    errors = [line["top1_err"] for line in lines]
    assert [line["epoch"] for line in lines] == [f"{epoch}/20" for epoch in range(1, 21)]
    assert errors[-1] < errors[0]
    for number, line in enumerate(lines, start=1):
        assert line["min_top1_err"] == min(errors[:number])
        assert line["min_top5_err"] == 0.0  # of four classes


def test_a_killed_run_continues_and_gives_the_same_losses(project, tmp_path):
    whole = prepare(project / "pretrain.yaml", ["OUTPUT_DIR", str(tmp_path / "whole")])
    run(whole)
    expected = losses(tmp_path / "whole")
    run(prepare(project / "pretrain.yaml"))
    (tmp_path / "pretrain/checkpoints/checkpoint_epoch_00002.pyth").unlink()  # as if killed before
    run(prepare(project / "pretrain.yaml"))
    assert losses(tmp_path / "pretrain") == expected
    assert sorted(expected) == [1, 2, 3, 4]


def test_batches_do_not_depend_on_the_number_of_loader_workers(project, tmp_path):
    for workers in ("0", "2"):
        output = ["OUTPUT_DIR", str(tmp_path / workers), "DATA_LOADER.NUM_WORKERS", workers]
        run(prepare(project / "pretrain.yaml", output))
    assert losses(tmp_path / "0") == losses(tmp_path / "2")


def test_a_finished_run_is_only_tested_again(project, tmp_path):
    first = run(prepare(project / "finetune.yaml", ["TRAIN.CHECKPOINT_FILE_PATH", ""]))
    before = newest_checkpoint(tmp_path / "finetune/checkpoints").stat().st_mtime_ns
    again = run(prepare(project / "finetune.yaml", ["TRAIN.ENABLE", "False"]))
    assert again == first
    assert newest_checkpoint(tmp_path / "finetune/checkpoints").stat().st_mtime_ns == before


def test_everything_that_is_missing_is_named_in_one_message(project, tmp_path):
    overrides = ["DATA.PATH_TO_DATA_DIR", "no/data", "TRAIN.TOKEN_STORE", "no/tokens"]
    with pytest.raises(MissingInputError) as error:
        run(prepare(project / "finetune.yaml", overrides))
    message = str(error.value)
    assert "folder 'no/data' not found" in message
    assert "no token store in 'no/tokens'" in message
    assert f"tools/extract_tokens.py --cfg {project / 'finetune.yaml'}" in message
    assert "TRAIN.CHECKPOINT_FILE_PATH: no checkpoint in" in message
    assert f"tools/run_net.py --cfg {project / 'pretrain.yaml'}" in message
    assert not (tmp_path / "finetune").exists()


def test_of_a_list_of_the_authors_folders_those_that_are_missing_are_named(project, tmp_path):
    there = tmp_path / "dalle_mine_train_fps2_hflip0_16center16"
    there.mkdir()
    overrides = ["TRAIN.TOKEN_STORE", f"[{there}, no/folder, {tmp_path}/tokens_train]"]
    with pytest.raises(MissingInputError) as error:
        run(prepare(project / "pretrain.yaml", overrides))
    message = str(error.value)
    for wrong in ("no/folder", f"{tmp_path}/tokens_train"):  # the latter is no folder of theirs
        assert f"TRAIN.TOKEN_STORE: no token folders of the authors' in '{wrong}'" in message
    assert str(there) not in message
    assert "extract_tokens" not in message


def test_a_store_of_another_tokenizer_is_refused(project, tmp_path):
    overrides = ["TOKENIZER.NAME", "DalleTokenizer", "TOKENIZER.encoder", "nowhere.pkl"]
    with pytest.raises(ValueError, match="tokenizer is 'AnyTokenizer', expected 'DalleTokenizer'"):
        run(prepare(project / "pretrain.yaml", overrides))
    assert not (tmp_path / "pretrain").exists()


def test_pretrained_weights_of_other_tokens_are_refused(project, tmp_path):
    run(prepare(project / "pretrain.yaml"))
    write_store(tmp_path / "other_tokens", ("16center16",), fingerprint="A:2")
    overrides = ["TRAIN.TOKEN_STORE", str(tmp_path / "other_tokens")]
    with pytest.raises(CheckpointError, match=r"tokenizer_fingerprint 'A:1', this run has 'A:2'"):
        run(prepare(project / "finetune.yaml", overrides))
    assert not (tmp_path / "finetune").exists()


def test_a_run_of_another_model_in_the_same_folder_is_refused(project, tmp_path):
    run(prepare(project / "pretrain.yaml"))
    before = (tmp_path / "pretrain/config.yaml").read_text()
    with pytest.raises(CheckpointError, match=r"another model.*choose another OUTPUT_DIR"):
        run(prepare(project / "pretrain.yaml", ["BACKBONE.embed_dim", "32"]))
    assert (tmp_path / "pretrain/config.yaml").read_text() == before


def test_labels_must_fit_the_number_of_classes(project):
    overrides = ["MODEL.NUM_CLASSES", "3", "TRAIN.CHECKPOINT_FILE_PATH", ""]
    overrides += ["TEST.DATASET.num_classes", "4"]
    with pytest.raises(ValueError, match=r"MODEL.NUM_CLASSES is 3 but the data set has 4 classes"):
        run(prepare(project / "finetune.yaml", overrides))


def test_a_longer_grid_resizes_the_position_tables(project, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run(prepare(project / "pretrain.yaml"))
    run(prepare(project / "finetune.yaml", ["DATA.NUM_FRAMES", "5"]))
    report = next(r.getMessage() for r in caplog.records if "weights from" in r.getMessage())
    assert "1 resized" in report


def test_config_mistakes_stop_before_anything_is_written(project, tmp_path):
    with pytest.raises(ConfigError, match="BACH_SIZE"):
        prepare(project / "pretrain.yaml", ["TRAIN.BACH_SIZE", "3"])
    with pytest.raises(BuildError, match=r"MASKER in .*num_blocs.*num_blocks"):
        prepare(project / "pretrain.yaml", ["MASKER.num_blocs", "3"])
    with pytest.raises(BuildError, match=r"LOSSES.token in .*weight of MaskedTokenLoss must be"):
        prepare(project / "pretrain.yaml", ["LOSSES.token.weight", "heavy"])
    assert not (tmp_path / "pretrain").exists()


def test_missing_test_videos_are_counted_as_configured(project, tmp_path):
    with (tmp_path / "data/test.csv").open("a") as file:
        file.write("clips/lost.mp4 0\n")
    base = ["TRAIN.CHECKPOINT_FILE_PATH", ""]
    with pytest.raises(ValueError, match=r"1 of 9 videos are not in the token store.*clips/lost"):
        run(prepare(project / "finetune.yaml", base))
    results = {
        rule: run(prepare(project / "finetune.yaml", [*base, "DATA.ON_BAD_VIDEO", rule]))
        for rule in ("skip", "count_wrong")
    }
    for rule, result in results.items():
        protocol = result["protocol"]
        assert (protocol["expected_videos"], protocol["missing_videos"]) == (9, 1)
        assert protocol["missing_views"] == 6
        assert protocol["on_bad_video"] == rule
    right = results["skip"]["top1"] * 8 / 100
    assert results["count_wrong"]["top1"] == pytest.approx(100 * right / 9)


def test_a_list_need_not_have_every_class(project, tmp_path, caplog):
    """Without class 3 in the test, and without class 0 in the training."""
    for split, last in (("test", 3), ("train", 0)):
        path = tmp_path / f"data/{split}.csv"
        lines = [line for line in path.read_text().splitlines() if not line.endswith(f" {last}")]
        path.write_text("\n".join(lines) + "\n")
    result = run(prepare(project / "finetune.yaml", ["TRAIN.CHECKPOINT_FILE_PATH", ""]))
    assert result["protocol"]["decoded_videos"] == 6
    assert "TEST: no video has a label above 2, but MODEL.NUM_CLASSES is 4" in caplog.text
    assert "TRAIN: no video" not in caplog.text
    folder = tmp_path / "finetune/test"
    tables = {}
    for name in ("per_class", "confusion", "predictions"):
        with (folder / f"{name}.csv").open(newline="") as file:
            tables[name] = list(csv.reader(file))
    counts = [row[:3] for row in tables["per_class"][1:]]
    assert counts == [["0", "0", "2"], ["1", "1", "2"], ["2", "2", "2"], ["3", "3", "0"]]
    assert tables["confusion"][0][1:] == ["0", "1", "2", "3"]
    numbers = np.array([row[1:] for row in tables["confusion"][1:]], int)
    assert numbers.shape == (4, 4)
    assert numbers.sum(axis=1).tolist() == [2, 2, 2, 0]
    right = numbers.trace()
    assert result["top1"] == pytest.approx(100 * right / 6)
    seen = [numbers[i, i] / 2 for i in range(3)]  # of three classes, not of four
    assert result["mean_class_accuracy"] == pytest.approx(100 * sum(seen) / 3)
    header, *rows = tables["predictions"]
    column = {name: header.index(name) for name in header}
    for row in rows:
        assert row[column["prediction_name"]] == row[column["prediction"]]


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_a_label_that_the_model_does_not_have_is_named(project, tmp_path, phase):
    with (tmp_path / f"data/{phase.lower()}.csv").open("a") as file:
        file.write("clips/video_77.mp4 4\n")
    overrides = ["TRAIN.CHECKPOINT_FILE_PATH", "", "DATA.ON_BAD_VIDEO", "skip"]
    match = rf"{phase}\.DATASET: video 'clips/video_77' \(.*77\.mp4\) has label 4; .* is 4, so"
    with pytest.raises(ValueError, match=match):
        run(prepare(project / "finetune.yaml", overrides))
    assert not (tmp_path / "finetune/checkpoints").exists()


def test_training_videos_that_are_left_out_are_counted(project, tmp_path, caplog):
    with (tmp_path / "data/train.csv").open("a") as file:
        file.write("clips/lost.mp4 0\n")
    run(prepare(project / "pretrain.yaml", ["DATA.ON_BAD_VIDEO", "skip"]))
    assert "1 of 9 training videos are not in the token store" in caplog.text
    assert "clips/lost" in caplog.text
