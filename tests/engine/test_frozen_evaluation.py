"""What a frozen backbone is worth: k-NN of a checkpoint, linear and attentive probes, one view."""

import json

import numpy as np
import pytest
import torch
from tiny_project import make_tiny_project, pretrain_config, write_config
from video_project import NUM_TEST, NUM_TRAIN, make_video_project, token_changes, video_config

from vimpac_ext.config import ConfigError
from vimpac_ext.data import FrameClips, spatial_views
from vimpac_ext.data.annotations import PathLabelList
from vimpac_ext.data.decode import VideoDecodeError
from vimpac_ext.engine import prepare, run, tester
from vimpac_ext.engine.assembly import build_task
from vimpac_ext.engine.checkpoint import newest_checkpoint, read_checkpoint
from vimpac_ext.engine.extraction import extract_stores
from vimpac_ext.engine.requirements import MissingInputError


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The backbone of a short training, with BatchNorm statistics of its own."""
    project = make_video_project(tmp_path_factory.mktemp("project"))
    project.trained = project.folder / "trained"
    run(prepare(video_config(project, "trained")))
    return project


def backbone_state(run_folder, which="model_state"):
    state = read_checkpoint(newest_checkpoint(run_folder / "checkpoints"))[which]
    return {name: value for name, value in state.items() if name.startswith("backbone.")}


def knn_changes(bank="train", queries="test", **more):
    dataset = {"NAME": "PathLabelList"}
    return {
        "TRAIN": {"ENABLE": False},
        "TEST": {"ENABLE": False},
        "KNN": {
            "ENABLE": True,
            "TRAIN": {"DATASET": {**dataset, "split": bank}},
            "TEST": {"DATASET": {**dataset, "split": queries}},
            "TARGET_FPS": 4.0,
            "K": 5,
            **more,
        },
    }


def test_knn_of_a_checkpoint_for_frames_equals_one_by_hand(project):
    changes = knn_changes()
    changes["TEST"]["CHECKPOINT_FILE_PATH"] = str(project.trained)
    changes["HEADS"] = {"classification": {"NAME": "FrameAverageHead"}}  # is not looked at
    loaded = prepare(video_config(project, "knn", **changes))
    result = run(loaded)["knn"]
    assert json.loads((project.folder / "knn/knn/result.json").read_text()) == result
    assert (result["bank_videos"], result["query_videos"]) == (NUM_TRAIN, NUM_TEST)

    backbone = build_task(prepare(video_config(project, "again")).cfg).backbone.eval()
    state = backbone_state(project.trained)
    backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items()})
    vectors, labels = {}, {}
    for split in ("train", "test"):
        records = PathLabelList(str(project.root), split).records
        clips = FrameClips(records, spatial_views("center", 32), 4, 4.0, mode="uniform")
        items = [clips[index] for index in range(len(clips))]
        with torch.no_grad():
            found = [backbone(item["clips"])["cls"][0].double().numpy() for item in items]
        vectors[split] = [vector / np.linalg.norm(vector) for vector in found]
        labels[split] = [record.label for record in records]
    hits = 0
    for query, label in zip(vectors["test"], labels["test"], strict=True):
        cosines = np.array([query @ vector for vector in vectors["train"]])
        scores = np.zeros(3)
        for neighbour in np.argsort(-cosines)[:5]:
            scores[labels["train"][neighbour]] += np.exp(cosines[neighbour] / 0.07)
        hits += scores.argmax() == label
    assert result["top1"] == pytest.approx(100 * hits / NUM_TEST)
    assert hits > NUM_TEST / 3, "no better than chance"


def test_knn_leaves_out_a_video_that_is_none_and_says_so(project, caplog):
    changes = knn_changes(queries="with_bad", TARGET_FPS=8.0)
    changes["TEST"]["CHECKPOINT_FILE_PATH"] = "none"
    path = video_config(project, "knn_bad", **changes, DATA={"ON_BAD_VIDEO": "skip"})
    result = run(prepare(path))["knn"]
    assert (result["query_videos"], result["expected_query_videos"]) == (NUM_TEST, NUM_TEST + 1)
    assert result["checkpoint"] == "as built"
    assert "left out of k-NN" in caplog.text
    assert "KNN takes 8 frames a second" in caplog.text
    with pytest.raises(VideoDecodeError, match=r"bad\.mp4"):
        run(prepare(path, ["DATA.ON_BAD_VIDEO", "error"]))


def test_knn_of_clips_spread_over_the_video_has_no_rate(project, caplog):
    changes = knn_changes(TARGET_FPS=8.0)
    changes["TEST"]["CHECKPOINT_FILE_PATH"] = "none"
    path = video_config(project, "knn_spread", **changes)
    spread = run(prepare(path, ["DATA.SAMPLING", "segments"]))["knn"]
    assert "frames a second" not in caplog.text
    other = run(prepare(path))["knn"]["protocol"]
    assert spread["protocol"] == {**other, "sampling": "segments"}


def test_knn_of_a_checkpoint_is_what_the_training_logged(tmp_path):
    make_tiny_project(tmp_path)
    (tmp_path / "tokens_train" / "videos.csv").write_text(
        "".join(f"clips/video_{i} {i % 4}\n" for i in range(8))
    )
    config = pretrain_config(tmp_path)
    stores = {"TOKEN_STORE": str(tmp_path / "tokens_train")}
    config["KNN"] = {"ENABLE": True, "TRAIN": stores, "TEST": stores, "K": 3}
    config["TRAIN"]["EVAL_PERIOD"] = 2
    write_config(tmp_path / "watched.yaml", config)
    run(prepare(tmp_path / "watched.yaml"))
    lines = map(json.loads, (tmp_path / "pretrain/metrics.jsonl").read_text().splitlines())
    (logged,) = (line for line in lines if line["_type"] == "knn_epoch")
    again = ["TRAIN.ENABLE", "False", "TRAIN.EVAL_PERIOD", "0"]
    result = run(prepare(tmp_path / "watched.yaml", again))["knn"]
    assert result["top1"] == pytest.approx(100 - logged["top1_err"], abs=1e-3)
    assert result["top5"] == pytest.approx(100 - logged["top5_err"], abs=1e-3)
    assert result["protocol"]["tokenizer"] == "A:1"
    with pytest.raises(MissingInputError, match="TEST.CHECKPOINT_FILE_PATH: no checkpoint in"):
        run(prepare(tmp_path / "watched.yaml", [*again, "OUTPUT_DIR", str(tmp_path / "none")]))


def test_knn_says_which_data_it_lacks(project):
    changes = knn_changes()
    changes["TEST"]["CHECKPOINT_FILE_PATH"] = str(project.trained)
    frames = video_config(project, "lacking", **changes)
    with pytest.raises(ConfigError, match="KNN.TEST.TOKEN_STORE.* must be given"):
        prepare(frames, ["KNN.TEST.DATASET.NAME", ""])
    tokens = {key: value for key, value in token_changes(project).items() if "T" not in key[:1]}
    path = video_config(project, "lacking_tokens", **{**knn_changes(), **tokens})
    with pytest.raises(ConfigError, match=r"KNN.TRAIN.TOKEN_STORE is empty.* reads tokens"):
        run(prepare(path, ["TEST.CHECKPOINT_FILE_PATH", "none"]))


def test_a_linear_probe_leaves_the_backbone_as_it_is_and_learns(project):
    path = video_config(
        project,
        "linear",
        TASK={"freeze_backbone": True},
        TRAIN={"CHECKPOINT_FILE_PATH": str(project.trained), "EMA_DECAY": 0.9},
        SOLVER={"MAX_EPOCH": 8, "BASE_LR": 0.02, "WEIGHT_DECAY": 0.1},
    )
    result = run(prepare(path))
    assert result["top1"] > 60, "chance is 33.3"
    before = backbone_state(project.trained)
    assert any(name.endswith("running_mean") for name in before)
    for which in ("model_state", "ema_state"):
        after = backbone_state(project.folder / "linear", which)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_an_attentive_probe_leaves_the_backbone_as_it_is_and_learns(tmp_path):
    configs = make_tiny_project(tmp_path)
    run(prepare(configs / "pretrain.yaml", ["SOLVER.MAX_EPOCH", "1"]))
    overrides = [
        *("TASK.freeze_backbone", "True", "HEADS.classification.NAME", "AttentiveHead"),
        *("HEADS.classification.num_heads", "2", "SOLVER.MAX_EPOCH", "30"),
    ]
    result = run(prepare(configs / "finetune.yaml", overrides))
    assert result["top1"] > 50, "chance is 25"
    before, after = backbone_state(tmp_path / "pretrain"), backbone_state(tmp_path / "finetune")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


class _ByPixels(torch.nn.Module):
    """Probabilities that another clip changes altogether."""

    def predict(self, clips):
        flat = clips.flatten(1).double()
        weights = torch.randn(flat.shape[1], 3, generator=torch.Generator().manual_seed(0))
        return (5 * torch.sin(1000 * (flat @ weights.double()))).softmax(dim=1)


@pytest.mark.parametrize("kind", ["frames", "tokens"])
def test_the_single_view_of_a_test_is_a_test_of_that_view(kind, project):
    """3 x 3 views have the center crop of the middle clip among them."""
    changes = token_changes(project) if kind == "tokens" else {}
    loaded = prepare(video_config(project, f"views_{kind}", **changes))
    if kind == "tokens":
        extract_stores(loaded)
    alone = ["TEST.NUM_ENSEMBLE_VIEWS", "1", "TEST.NUM_SPATIAL_CROPS", "1"]
    cpu = torch.device("cpu")
    many = tester.Tester(loaded.cfg, cpu).run(_ByPixels())
    one = tester.Tester(prepare(loaded.path, alone).cfg, cpu).run(_ByPixels())
    assert many.single_view_ranks.tolist() == one.ranks.tolist() == one.single_view_ranks.tolist()
    assert many.ranks.tolist() != one.ranks.tolist()
    assert many.single_view_accuracy(1) == one.topk_accuracy(1)


@pytest.mark.parametrize("kind", ["frames", "tokens"])
def test_clips_spread_over_the_video_are_tested(kind, project):
    changes = token_changes(project) if kind == "tokens" else {}
    loaded = prepare(video_config(project, f"spread_{kind}", **changes))
    if kind == "tokens":
        extract_stores(loaded)
    spread = ["DATA.SAMPLING", "segments", "TEST.NUM_ENSEMBLE_VIEWS", "1"]
    cpu = torch.device("cpu")
    test = tester.Tester(prepare(loaded.path, spread).cfg, cpu)
    other = tester.Tester(prepare(loaded.path, spread[2:]).cfg, cpu)
    assert test.protocol() == {**other.protocol(), "start_rule": "segments"}
    assert test.run(_ByPixels()).ranks.tolist() != other.run(_ByPixels()).ranks.tolist()
    two = [*spread[:-1], "2", "TEST.NUM_SPATIAL_CROPS", "1"]
    assert tester.Tester(prepare(loaded.path, two).cfg, cpu).single_view == 1  # not at the start
    message = "DATA.SAMPLING_RATE in .* must be 1, since DATA.SAMPLING is segments, found 2"
    with pytest.raises(ConfigError, match=message):
        prepare(loaded.path, [*spread, "DATA.SAMPLING_RATE", "2"])


def test_a_run_reports_its_single_view(project):
    overrides = ["TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", str(project.trained)]
    overrides += ["OUTPUT_DIR", str(project.folder / "again")]
    result = run(prepare(video_config(project, "single"), overrides))
    written = json.loads((project.folder / "again/test/result.json").read_text())
    assert written["single_view"] == result["single_view"]
    assert result["single_view"].keys() == {"top1", "top5"}
    before = json.loads((project.trained / "test/result.json").read_text())
    assert before["protocol_id"] == result["protocol_id"]
