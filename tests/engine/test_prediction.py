"""Predictions for files: the same numbers as the test's, and what a user sees."""

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from video_project import (
    CLASS_NAMES,
    NUM_TEST,
    make_video_project,
    read_predictions,
    token_changes,
    video_config,
)

from vimpac_ext.config import ConfigError
from vimpac_ext.data import VideoReader
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.checkpoint import CheckpointError
from vimpac_ext.engine.extraction import extract_stores
from vimpac_ext.engine.prediction import Predictor
from vimpac_ext.engine.prediction_files import predict_files, video_records
from vimpac_ext.engine.requirements import MissingInputError
from vimpac_ext.tokenizers import VQVAETokenizer


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_video_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def frames_config(project):
    """A trained and tested model that reads frames."""
    path = video_config(project, "frames")
    run(prepare(path))
    return path


@pytest.fixture(scope="module")
def tokens_config(project):
    """A trained and tested model that reads tokens; its stores are gone."""
    path = video_config(project, "tokens", **token_changes(project))
    loaded = prepare(path)
    extract_stores(loaded)
    run(loaded)
    for phase in ("TRAIN", "TEST"):
        shutil.rmtree(loaded.cfg[phase].TOKEN_STORE)
    return path


def scores_of(predictor, paths):
    return {p.record.path: p.scores for p in predictor.run(video_records(paths))}


@pytest.mark.parametrize("which", ["frames", "tokens"])
def test_probabilities_are_the_tests(which, project, request):
    path = request.getfixturevalue(f"{which}_config")
    expected = read_predictions(project.folder / which)
    found = scores_of(Predictor(prepare(path)), expected)
    assert len(found) == NUM_TEST
    for video, scores in found.items():
        np.testing.assert_allclose(scores, expected[video], atol=1e-5)
        assert scores.sum() == pytest.approx(1)
    spread = np.ptp(list(found.values()), axis=0).max()
    assert spread > 1e-3, "the videos are all alike: the comparison shows nothing"


@pytest.mark.parametrize(
    "overrides",
    [["DATA.ENSEMBLE_METHOD", "max"], ["TEST.NUM_ENSEMBLE_VIEWS", "1", "TEST.PRECISION", "bf16"]],
)
def test_probabilities_are_the_tests_with_other_options(overrides, project, frames_config):
    output = ["OUTPUT_DIR", str(project.folder / "other"), "TRAIN.ENABLE", "False"]
    output += ["TEST.CHECKPOINT_FILE_PATH", str(project.folder / "frames")]
    loaded = prepare(frames_config, [*output, *overrides])
    run(loaded)
    expected = read_predictions(project.folder / "other")
    for video, scores in scores_of(Predictor(loaded), expected).items():
        np.testing.assert_allclose(scores, expected[video], atol=1e-5)


def test_real_videos_get_the_tests_probabilities(project, real_videos, tmp_path):
    names = [
        "ucf101_ApplyEyeMakeup_g01_c01.avi",
        "decord_rotation_90.mov",
        "k400_arm_wrestling.mp4",
    ]
    (tmp_path / "list.csv").write_text("".join(f"{name} {i}\n" for i, name in enumerate(names)))
    changes = token_changes(project)
    dataset = {"root": str(tmp_path), "path_prefix": str(real_videos), "class_file": None}
    for phase in ("TRAIN", "TEST"):
        changes[phase] = {
            "DATASET": {**dataset, "split": "list"},
            "TOKEN_STORE": str(tmp_path / "tokens"),
        }
    changes["TRAIN"]["BATCH_SIZE"] = 3
    changes["DATA"]["TRAIN_VIEWS"] = "three_crops"
    changes["SOLVER"] = {"MAX_EPOCH": 6, "BASE_LR": 0.02}
    changes["OUTPUT_DIR"] = str(tmp_path / "run")
    loaded = prepare(video_config(project, "real", **changes))
    extract_stores(loaded)
    run(loaded)
    expected = read_predictions(tmp_path / "run")
    found = scores_of(Predictor(loaded), [real_videos / name for name in names])
    for video, scores in found.items():
        np.testing.assert_allclose(scores, expected[video], atol=1e-5)
    assert np.ptp(list(found.values()), axis=0).max() > 1e-3


def test_a_bad_video_is_reported_and_the_others_go_on(project, frames_config, tmp_path):
    shown = []
    records = video_records([project.root / "below"])
    num_bad = predict_files(
        Predictor(prepare(frames_config)),
        records,
        shown.append,
        top_k=2,
        draw=tmp_path / "drawn",
        json_file=tmp_path / "result.json",
    )
    assert num_bad == 1
    content = json.loads((tmp_path / "result.json").read_text())
    assert (content["num_bad"], content["temporal_views"], content["spatial_crops"]) == (1, 3, 3)
    by_name = {Path(video["path"]).name: video for video in content["videos"]}
    assert len(by_name) == len(shown) == NUM_TEST + 1
    bad = by_name.pop("bad.mp4")
    assert "bad.mp4" in bad["error"]
    assert bad["classes"] == []
    assert not (tmp_path / "drawn/bad.mp4").exists()
    expected = read_predictions(project.folder / "frames")
    for video in by_name.values():
        scores = expected[video["path"]]
        order = np.argsort(-scores)[:2]
        assert [c["name"] for c in video["classes"]] == [CLASS_NAMES[i] for i in order]
        assert [c["label"] for c in video["classes"]] == order.tolist()
        assert [c["probability"] for c in video["classes"]] == pytest.approx(scores[order].tolist())
        assert video["seconds"]["decode"] > 0
        assert video["seconds"]["model"] > 0
        assert Path(video["drawn"]).is_file()
    text = next(text for text in shown if "12.mp4" in text)
    best = by_name["12.mp4"]["classes"][0]
    assert f"{100 * best['probability']:.2f} %  {best['name']}" in text


def test_a_drawn_video_is_the_video_with_text_on_top(project, frames_config, tmp_path):
    source = project.root / "below/12.mp4"
    predict_files(
        Predictor(prepare(frames_config)), video_records([source]), list, 3, draw=tmp_path
    )
    original, drawn = VideoReader(source), VideoReader(tmp_path / "12.mp4")
    assert drawn.decode_all() == original.decode_all() == 36
    assert drawn.duration == pytest.approx(original.duration)
    before, after = original.frames_at(8, [0, 20]), drawn.frames_at(8, [0, 20])
    scale = 5  # 48 pixels are enlarged to at least 240
    assert after.shape == (2, 48 * scale, 64 * scale, 3)
    enlarged = before.repeat(scale, 1).repeat(scale, 2)
    difference = np.abs(after.astype(float) - enlarged).mean(axis=(0, 2, 3))
    assert difference[-120:].mean() < 4  # coding only
    assert difference[:36].mean() > 15
    with av.open(str(tmp_path / "12.mp4")) as container:
        assert not container.streams.audio


def test_names_come_from_a_file_or_the_data_set_or_are_numbers(project, frames_config, tmp_path):
    assert Predictor(prepare(frames_config)).class_names == list(CLASS_NAMES)
    assert Predictor(prepare(frames_config), ["a", "b", "c"]).class_names == ["a", "b", "c"]
    elsewhere = ["DATA.PATH_TO_DATA_DIR", str(tmp_path / "nowhere")]
    predictor = Predictor(prepare(frames_config, elsewhere))
    shown = []
    predict_files(predictor, video_records([project.root / "below/12.mp4"]), shown.append)
    assert "class 0" in shown[0]
    with pytest.raises(ValueError, match="NUM_CLASSES is 3 but .* 2 classes"):
        Predictor(prepare(frames_config), ["a", "b"])


def test_folders_are_searched_and_nothing_is_overwritten(project, tmp_path, frames_config):
    videos = tmp_path / "videos"
    for name in ("a.mp4", "deep/er/a.mp4", "deep/b.MP4", ".hidden/c.mp4", "a.avi", "notes.txt"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project.root / "below/12.mp4", videos / name)
    records = video_records([videos, videos / "a.mp4"])
    assert [r.video_id for r in records] == ["a", "a", "deep/b", "deep/er/a"]
    predictor = Predictor(prepare(frames_config))
    with pytest.raises(ValueError, match=r"a\.mp4 is one of the videos; draw into another folder"):
        predict_files(predictor, records, list, draw=videos)
    predict_files(predictor, records, list, draw=tmp_path / "drawn")
    drawn = sorted(str(p.relative_to(tmp_path / "drawn")) for p in tmp_path.glob("drawn/**/*.mp4"))
    assert drawn == ["a.mp4", "a_2.mp4", "deep/b.mp4", "deep/er/a.mp4"]
    (videos / "empty").mkdir()
    with pytest.raises(ValueError, match="has no videos"):
        video_records([videos / "empty"])


def test_mistakes_are_named(project, frames_config, tokens_config, tmp_path):
    with pytest.raises(ConfigError, match="describes no classifier"):
        Predictor(prepare(frames_config, ["MODEL.NUM_CLASSES", "0"]))
    with pytest.raises(ConfigError, match="reads tokens, so videos need the tokenizer"):
        Predictor(prepare(tokens_config, ["TOKENIZER.NAME", ""]))
    with pytest.raises(MissingInputError, match="no checkpoint in"):
        Predictor(prepare(frames_config, ["OUTPUT_DIR", str(tmp_path)]))
    with pytest.raises(CheckpointError, match="another model"):
        Predictor(prepare(frames_config, ["BACKBONE.model", "resnet14t"]))
    VQVAETokenizer(None, vocab_size=64, hidden_dim=8, code_dim=4).save(tmp_path / "o.safetensors")
    with pytest.raises(CheckpointError, match="trained with tokenizer_fingerprint"):
        Predictor(prepare(tokens_config, ["TOKENIZER.weights", str(tmp_path / "o.safetensors")]))
