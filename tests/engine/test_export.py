"""Exported scores and features against the test's and against a model called by hand."""

import json
import sys

import numpy as np
import pytest
import torch
from tiny_project import make_tiny_project
from video_project import CLASS_NAMES, NUM_TEST, make_video_project, video_config

from vimpac_ext.config import ConfigError
from vimpac_ext.data import FrameClips, spatial_views
from vimpac_ext.data.annotations import PathLabelList
from vimpac_ext.data.decode import VideoDecodeError
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.assembly import build_task
from vimpac_ext.engine.checkpoint import newest_checkpoint, read_checkpoint
from vimpac_ext.engine.export import export


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A trained and tested model that reads frames."""
    project = make_video_project(tmp_path_factory.mktemp("project"))
    project.config = video_config(project, "frames")
    run(prepare(project.config))
    return project


def read(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_scores_and_features_of_one_pass(project, tmp_path):
    loaded = prepare(project.config)
    export(loaded, tmp_path / "both.npz")
    found = read(tmp_path / "both.npz")
    tested = np.load(project.folder / "frames/test/scores.npz")
    np.testing.assert_allclose(found["scores"], tested["scores"], atol=1e-6)
    assert found["video_ids"].tolist() == tested["video_ids"].tolist()
    assert found["labels"].tolist() == [0, 1, 2, 0, 1, 2]
    assert found["class_names"].tolist() == list(CLASS_NAMES)
    result = json.loads((project.folder / "frames/test/result.json").read_text())
    assert str(found["protocol_id"]) == result["protocol_id"]
    assert json.loads(str(found["protocol"])) == result["protocol"]

    task = build_task(loaded.cfg).eval()
    checkpoint = newest_checkpoint(project.folder / "frames/checkpoints")
    task.load_state_dict(read_checkpoint(checkpoint)["model_state"])
    clips = FrameClips(
        PathLabelList(str(project.root), "test").records,
        views=spatial_views("three_crops", 32),
        num_frames=4,
        fps=4.0,
        mode="uniform",
        num_temporal_views=3,
    )
    for index in range(NUM_TEST):
        with torch.no_grad():
            own = torch.cat([task.backbone(c[None])["cls"] for c in clips[index]["clips"]])
        np.testing.assert_allclose(found["features"][index], own.mean(0).numpy(), atol=1e-5)
    assert np.ptp(found["features"], axis=0).max() > 0.01


def test_each_alone_is_as_both_together(project, tmp_path):
    loaded = prepare(project.config)
    both = export(loaded, tmp_path / "both.npz").table.columns
    for name in ("scores", "features"):
        export(loaded, tmp_path / f"{name}.npz", [name])
        found = read(tmp_path / f"{name}.npz")
        np.testing.assert_allclose(found[name], both[name], atol=1e-6)
        assert {"scores", "features"} - found.keys() == {"scores", "features"} - {name}


def test_a_video_that_is_none_has_rows_of_nan(project, tmp_path):
    overrides = ["TEST.DATASET.split", "with_bad", "DATA.ON_BAD_VIDEO", "skip"]
    summary = export(prepare(project.config, overrides), tmp_path / "out.npz")
    found = read(tmp_path / "out.npz")
    assert found["decoded"].tolist() == [True] * NUM_TEST + [False]
    for name in ("scores", "features"):
        assert np.isnan(found[name][-1]).all()
        assert np.isfinite(found[name][:-1]).all()
    assert [bad.video_id for bad in summary.bad_videos] == ["below/bad"]
    listed = (tmp_path / "out.npz.bad_videos.jsonl").read_text().splitlines()
    assert [json.loads(line)["video_id"] for line in listed] == ["below/bad"]
    with pytest.raises(VideoDecodeError, match=r"bad\.mp4"):
        export(prepare(project.config, overrides[:2]), tmp_path / "stopped.npz")
    assert not (tmp_path / "stopped.npz").exists()


def test_features_of_a_pre_training(tmp_path):
    """Its checkpoint, with the test data of a fine-tuning whose head it has not."""
    configs = make_tiny_project(tmp_path)
    run(prepare(configs / "pretrain.yaml", ["SOLVER.MAX_EPOCH", "1"]))
    pretrained = ["TEST.CHECKPOINT_FILE_PATH", str(tmp_path / "pretrain")]
    loaded = prepare(configs / "finetune.yaml", pretrained)
    features = export(loaded, tmp_path / "a.npz", ["features"]).table.columns["features"]
    own = [*pretrained, "TEST.DATASET.NAME", "PathLabelList", "TEST.DATASET.split", "test"]
    own += ["TEST.TOKEN_STORE", str(tmp_path / "tokens_test"), "TEST.NUM_ENSEMBLE_VIEWS", "2"]
    table = export(prepare(configs / "pretrain.yaml", own), tmp_path / "b.npz", ["features"]).table
    np.testing.assert_allclose(table.columns["features"], features, atol=1e-6)
    assert features.shape == (8, 16)
    with pytest.raises(ConfigError, match="gives no scores; export features"):
        export(prepare(configs / "pretrain.yaml", own), tmp_path / "b.npz")


def test_parquet_has_the_same_content(project, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    loaded = prepare(project.config)
    table = export(loaded, tmp_path / "both.parquet").table
    found = parquet.read_table(tmp_path / "both.parquet")
    assert found["video_id"].to_pylist() == list(table.video_ids)
    assert found["label"].to_pylist() == table.labels.tolist()
    for name in ("scores", "features"):
        assert np.array_equal(np.array(found[name].to_pylist(), np.float32), table.columns[name])
    assert json.loads(found.schema.metadata[b"class_names"]) == list(CLASS_NAMES)
    assert found.schema.metadata[b"protocol_id"].decode() == table.protocol_id


def test_mistakes_are_named_before_any_work(project, tmp_path, monkeypatch):
    loaded = prepare(project.config)
    with pytest.raises(ValueError, match=r"must end in \.npz or \.parquet"):
        export(loaded, tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"expected some of scores, features, found \['weights'\]"):
        export(loaded, tmp_path / "a.npz", ["weights"])
    with pytest.raises(ConfigError, match="TEST.DATASET says which videos"):
        export(prepare(project.config, ["TEST.DATASET.NAME", ""]), tmp_path / "a.npz")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'vimpac_ext\[parquet\]', or write \.npz"):
        export(loaded, tmp_path / "a.parquet")
    assert not list(tmp_path.iterdir())
