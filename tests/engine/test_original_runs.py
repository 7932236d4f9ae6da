"""Whole runs on the authors' token folders, with and without annotation files."""

import csv
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from original_format import record, write_token_folder
from tiny_project import finetune_config, pretrain_config, write_config

from vimpac_ext.config import ConfigError
from vimpac_ext.data import StoreMeta, TokenStoreWriter
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.checkpoint import CheckpointError, newest_checkpoint, read_checkpoint
from vimpac_ext.engine.requirements import MissingInputError
from vimpac_ext.tasks.convert_tokens import convert_tokens

CLASSES = 3
NAME = "dalle_ucf101_train_test_fps16_hflip{}_{}"


@pytest.fixture
def fixture_tokens(fixtures_dir):
    return str(fixtures_dir / "original" / "video_tokens")


def base_config(make, folder, tokens, crop, **train):
    """A configuration without data sets, whose tokens are those of folders."""
    config = make(folder)
    config["DATA"] = {
        "NUM_FRAMES": 5,
        "TARGET_FPS": 16.0,
        "TRAIN_CROP_SIZE": crop,
        "TEST_CROP_SIZE": crop,
    }
    config["TRAIN"] |= {"DATASET": {"NAME": ""}, "TOKEN_STORE": tokens, **train}
    config["TOKENIZER"] = {"NAME": "DalleTokenizer", "encoder": "no/such/encoder.pkl"}
    return config


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["_type"] == "train_iter"]


def write_own_tokens(folder, names, views):
    """Videos whose tokens tell their class."""
    rng = np.random.default_rng(0)
    for view in views:
        values = {
            name: record(100 * label + rng.integers(0, 5, (9, 2, 2)), label)
            for name, label in names.items()
        }
        write_token_folder(folder / NAME.format(*view), values)


def test_pretraining_and_finetuning_on_the_authors_folders_alone(
    fixture_tokens, tmp_path, monkeypatch
):
    # Drawing 101 classes takes seconds.
    monkeypatch.setattr("vimpac_ext.evaluation.report.save_confusion_plot", lambda *_: None)
    config = base_config(pretrain_config, tmp_path, fixture_tokens, 128)
    write_config(tmp_path / "pretrain.yaml", config)
    assert run(prepare(tmp_path / "pretrain.yaml")) == {}
    assert len(losses(tmp_path / "pretrain")) == 2

    config = base_config(finetune_config, tmp_path, fixture_tokens, 128, BATCH_SIZE=2)
    config["DATA"] |= {"TRAIN_VIEWS": "three_crops", "SAMPLING_RATE": 4}
    config["MODEL"] = {"NUM_CLASSES": 101}
    config["TEST"] |= {"DATASET": {"NAME": ""}, "TOKEN_STORE": f"{fixture_tokens}/dalle_ucf101_*"}
    write_config(tmp_path / "finetune.yaml", config)
    result = run(prepare(tmp_path / "finetune.yaml"))
    protocol = result["protocol"]
    assert (protocol["dataset"], protocol["decoder"]) == ("StoredVideos", "ffmpeg")
    assert (protocol["expected_videos"], protocol["decoded_videos"]) == (4, 4)
    with (tmp_path / "finetune/test/predictions.csv").open() as file:
        labels = {row["video_id"]: int(row["label"]) for row in csv.DictReader(file)}
    assert labels["YoYo/v_YoYo_g25_c05"] == 100
    assert labels["Biking/v_Biking_g07_c02"] == 10

    # Converted, they are the same tokens: the result and its protocol are the same.
    convert_tokens([fixture_tokens], tmp_path / "store", progress=False)
    overrides = ["TRAIN.ENABLE", "False", "TEST.TOKEN_STORE", str(tmp_path / "store")]
    assert run(prepare(tmp_path / "finetune.yaml", overrides)) == result


def test_split_files_part_one_folder_and_the_classes_are_learned(tmp_path, caplog):
    names = {f"class {i % CLASSES}/v_{i}": i % CLASSES for i in range(12)}
    views = [(flip, f"{size}{crop}16") for flip in (0, 1) for size in (16, 20)
             for crop in ("top", "center", "bottom")]  # fmt: skip
    write_own_tokens(tmp_path / "tokens", names, views)
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text("".join(f"{name}.avi, {label}\n" for name, label in [*names.items()][:9]))
    test.write_text("".join(f"{name}.avi, {label}\n" for name, label in [*names.items()][9:]))
    tokens = str(tmp_path / "tokens")
    config = base_config(finetune_config, tmp_path, tokens, 16, CHECKPOINT_FILE_PATH="")
    config["TRAIN"] |= {"TOKEN_SPLIT_FILE": str(train), "BATCH_SIZE": 9}
    config["DATA"]["TRAIN_VIEWS"] = "resize2_crop3_flip2"
    config["MODEL"] = {"NUM_CLASSES": CLASSES}
    config["SOLVER"]["MAX_EPOCH"] = 80
    test_folders = [f"{tokens}/{NAME.format(0, f'16{c}16')}" for c in ("top", "center", "bottom")]
    config["TEST"] |= {
        "DATASET": {"NAME": ""},
        "TOKEN_STORE": test_folders,
        "TOKEN_SPLIT_FILE": str(test),
    }
    path = tmp_path / "finetune.yaml"
    write_config(path, config)
    result = run(prepare(path))
    assert result["top1"] == 100.0
    assert result["protocol"]["expected_videos"] == 3
    assert result["protocol"]["split"] == str(test)

    # A video of the split that has no tokens is never dropped unseen.
    with train.open("a") as file:
        file.write("class 0/lost.avi, 0\n")
    with pytest.raises(ValueError, match=r"1 of 10 videos have no tokens.*class 0/lost"):
        run(prepare(path, ["OUTPUT_DIR", str(tmp_path / "other")]))
    short = ["OUTPUT_DIR", str(tmp_path / "skip"), "SOLVER.MAX_EPOCH", "1"]
    run(prepare(path, [*short, "DATA.ON_BAD_VIDEO", "skip"]))
    assert "1 of 10 videos have no tokens" in caplog.text


def test_annotation_files_and_the_authors_folders_go_together(fixture_tokens, tmp_path, caplog):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text(
        "YoYo/v_YoYo_g25_c05.avi 1\nBiking/v_Biking_g07_c02.avi 0\n"
    )
    config = base_config(pretrain_config, tmp_path, fixture_tokens, 128, BATCH_SIZE=2)
    with_list = {**config, "TRAIN": {**config["TRAIN"], "TOKEN_SPLIT_FILE": "list.txt"}}
    config["TRAIN"]["DATASET"] = {"NAME": "PathLabelList", "split": "train"}
    config["DATA"]["PATH_TO_DATA_DIR"] = str(tmp_path / "data")
    write_config(tmp_path / "pretrain.yaml", config)
    caplog.set_level(logging.INFO)
    run(prepare(tmp_path / "pretrain.yaml"))
    assert "training on 2 videos" in caplog.text

    with_list["TRAIN"]["DATASET"] = config["TRAIN"]["DATASET"]
    write_config(tmp_path / "both.yaml", with_list)
    with pytest.raises(ConfigError, match="SPLIT_FILE .*both.yaml must be empty.*PathLabelList"):
        prepare(tmp_path / "both.yaml")


def test_another_rate_size_or_tokenizer_is_refused(fixture_tokens, tmp_path):
    path = tmp_path / "pretrain.yaml"
    write_config(path, base_config(pretrain_config, tmp_path, fixture_tokens, 128))
    with pytest.raises(ValueError, match=r"fps is 16.0, expected 2.0"):
        run(prepare(path, ["DATA.TARGET_FPS", "2.0"]))
    with pytest.raises(ValueError, match=r"tokenizer is 'DalleTokenizer', expected 'VQVAE"):
        run(prepare(path, ["TOKENIZER.NAME", "VQVAETokenizer"]))
    with pytest.raises(ValueError, match=r"no folder with the view 64center64.*there is 128top128"):
        run(prepare(path, ["DATA.TRAIN_CROP_SIZE", "64"]))
    overrides = ["TRAIN.TOKEN_STORE", "no/folders/*", "TRAIN.TOKEN_SPLIT_FILE", "no/list.txt"]
    with pytest.raises(MissingInputError) as error:
        run(prepare(path, overrides))
    assert "no token store in 'no/folders/*'" in str(error.value)
    assert "no file 'no/list.txt'" in str(error.value)
    with pytest.raises(ConfigError, match="TRAIN.TOKEN_STORE.* must be str"):
        prepare(path, ["TRAIN.TOKEN_STORE", "3"])
    with pytest.raises(ConfigError, match=r"TRAIN.TOKEN_STORE.* must be str.* list \['a', 3\]"):
        prepare(path, ["TRAIN.TOKEN_STORE", "[a, 3]"])
    assert not (tmp_path / "pretrain").exists()


def test_weights_go_from_the_authors_tokens_to_ones_of_the_same_tokenizer(tmp_path, caplog):
    """Which weights made the authors' tokens is unknown; the tokenizer's name must be the same."""
    caplog.set_level(logging.INFO)
    names = {f"clips/video_{i}": i % 4 for i in range(8)}
    write_own_tokens(tmp_path / "tokens", names, [(0, "16center16")])
    config = base_config(pretrain_config, tmp_path, str(tmp_path / "tokens"), 16)
    config["DATA"]["NUM_FRAMES"] = 3
    write_config(tmp_path / "pretrain.yaml", config)
    run(prepare(tmp_path / "pretrain.yaml"))
    checkpoint = newest_checkpoint(tmp_path / "pretrain/checkpoints")
    assert read_checkpoint(checkpoint)["facts"] == {"tokenizer_fingerprint": "DalleTokenizer"}

    meta = StoreMeta("DalleTokenizer", "", 8192, 8, 16.0, ("16center16",), (2, 2))
    for fingerprint in ("DalleTokenizer:12ab", "Dalle:12ab"):
        folder = tmp_path / fingerprint
        with TokenStoreWriter(folder, replace(meta, tokenizer_fingerprint=fingerprint)) as writer:
            for name, label in names.items():
                writer.add(name, {"16center16": np.full((6, 2, 2), label)})
        (folder / "videos.csv").write_text("".join(f"{n} {i}\n" for n, i in names.items()))
        config = base_config(finetune_config, tmp_path, str(folder), 16)
        config["DATA"]["NUM_FRAMES"] = 3
        config["TEST"] = {"ENABLE": False}
        config["OUTPUT_DIR"] = str(tmp_path / f"finetune {fingerprint}")
        write_config(tmp_path / "finetune.yaml", config)
        if fingerprint.startswith("DalleTokenizer:"):
            run(prepare(tmp_path / "finetune.yaml"))
            assert "26 loaded, 0 resized" in caplog.text
        else:
            with pytest.raises(CheckpointError, match="'DalleTokenizer', this run has 'Dalle:12"):
                run(prepare(tmp_path / "finetune.yaml"))
