"""A training in stages is the chain of its stages' configurations, to the last bit."""

import json
import logging
import signal

import numpy as np
import pytest
import torch
import yaml
from test_resume import lines, start, weights
from tiny_project import make_tiny_project, pretrain_config, write_config, write_store

from vimpac_ext.config import ConfigError, last_stage, load_config, stages_of
from vimpac_ext.data import StoreMeta, TokenStore, TokenStoreWriter
from vimpac_ext.data.synthetic import encode_webm
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.checkpoint import find_checkpoint, read_checkpoint
from vimpac_ext.engine.extraction import extract_stores
from vimpac_ext.engine.requirements import MissingInputError
from vimpac_ext.engine.run_report import write_run_report
from vimpac_ext.engine.stage_progress import unfinished_stages

LARGE = {
    "DATA": {"TRAIN_CROP_SIZE": 32, "TEST_CROP_SIZE": 32},
    "TRAIN": {"TOKEN_STORE": "tokens_large", "BATCH_SIZE": 2},
    "MASKER": {"num_blocks": 4},
    "SOLVER": {"MAX_EPOCH": 2, "BASE_LR": 0.02},
}
SMALL = {"SOLVER": {"MAX_EPOCH": 3}}  # of two updates; the large stage has two of four
WARMUP = {"WARMUP_RATIO": 0.3}


def write_large_store(folder, fingerprint="A:1"):
    """The videos of the tiny project at twice the resolution."""
    meta = StoreMeta("AnyTokenizer", fingerprint, 20, 8, 2.0, ("32center32",), (4, 4))
    generator = torch.Generator().manual_seed(0)
    with TokenStoreWriter(folder, meta) as writer:
        for i in range(8):
            tokens = torch.randint(20, (6, 4, 4), generator=generator).numpy()
            writer.add(f"clips/video_{i}", {"32center32": tokens})


@pytest.fixture
def project(tmp_path):
    make_tiny_project(tmp_path)
    write_large_store(tmp_path / "tokens_large")
    return tmp_path


def config(project, stages=(SMALL, LARGE), name="staged", **changes):
    """A pre-training in stages."""
    content = pretrain_config(project)
    content["SOLVER"] |= WARMUP
    content["OUTPUT_DIR"] = str(project / name)
    stages = yaml.safe_load(yaml.safe_dump(list(stages)))
    for stage in stages:
        if "TOKEN_STORE" in stage.get("TRAIN", {}):
            stage["TRAIN"]["TOKEN_STORE"] = str(project / stage["TRAIN"]["TOKEN_STORE"])
    content["TRAIN"] |= {"STAGES": stages, **changes.pop("TRAIN", {})}
    path = project / "configs" / f"{name}.yaml"
    write_config(path, {**content, **changes})
    return path


def chain(project):
    """The same as two configurations, written by hand."""
    small = pretrain_config(project)
    small["SOLVER"] |= {**WARMUP, "MAX_EPOCH": 3, "SCHEDULE_EPOCHS": 5}
    small["OUTPUT_DIR"] = str(project / "chain_0")
    large = pretrain_config(project)
    large["SOLVER"] |= {**WARMUP, "MAX_EPOCH": 2, "BASE_LR": 0.02}
    large["SOLVER"] |= {"SCHEDULE_EPOCHS": 5, "SCHEDULE_START_EPOCH": 3}
    large["DATA"] = {**large["DATA"], "TRAIN_CROP_SIZE": 32, "TEST_CROP_SIZE": 32}
    large["MASKER"]["num_blocks"] = 4
    large["TRAIN"] |= {
        "TOKEN_STORE": str(project / "tokens_large"),
        "BATCH_SIZE": 2,
        "CHECKPOINT_FILE_PATH": str(project / "chain_0"),
        "CHECKPOINT_OPTIMIZER": True,
    }
    large["OUTPUT_DIR"] = str(project / "chain_1")
    paths = []
    for number, content in enumerate((small, large)):
        paths.append(project / "configs" / f"chain_{number}.yaml")
        write_config(paths[-1], content)
    return paths


def require_equal(folder, expected):
    assert lines(folder) == lines(expected)
    assert lines(folder)
    for name, value in weights(expected).items():
        assert torch.equal(weights(folder)[name], value), name


def require_equals_chain(project, chained):
    for stage in (0, 1):
        require_equal(project / "staged" / f"stage_{stage}", chained / f"chain_{stage}")


@pytest.fixture(scope="module")
def chained(tmp_path_factory):
    """Number of processes -> folder in which they have run the two configurations."""
    folders = {}

    def run_once(size):
        if size not in folders:
            folder = folders[size] = tmp_path_factory.mktemp(f"chain_{size}")
            make_tiny_project(folder)
            write_large_store(folder / "tokens_large")
            for path in chain(folder):
                assert [process.code for process in start(path, [], size)] == [0] * size
        return folders[size]

    return run_once


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_it_equals_the_chain_of_configurations(project, chained, size):
    ended = start(config(project), [], size)
    assert [process.code for process in ended] == [0] * size, ended
    require_equals_chain(project, chained(size))
    # One schedule over both stages: update 3 * 4 of (3 + 2) * 4, after a warm-up of 6.
    rates = [line["lr"] for line in lines(project / "staged/stage_1")]
    assert rates[0] == pytest.approx(0.02 * (1 - (3 * 4 - 6) / (20 - 6)), rel=1e-5)


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_in_any_stage_it_continues_bit_for_bit(project, chained, size):
    path = config(project, TRAIN={"CHECKPOINT_PERIOD_STEPS": 3})
    # In the first stage; writing the last checkpoint of the first; in the second.
    for moment in (2, -6, 8):
        ended = start(path, [], size, size - 1 if moment > 0 else 0, signal.SIGKILL, moment)
        assert -signal.SIGKILL in [process.code for process in ended], ended
        begun = (project / "staged/stage_1/checkpoints").exists()
        assert begun == (moment == 8)
    assert [process.code for process in start(path, [], size)] == [0] * size
    require_equals_chain(project, chained(size))


@pytest.mark.slow
def test_weights_in_parts_and_rates_of_layers_go_through_the_stages(project):
    """Stopped in the second stage; each rate, moment and average is that of one process."""
    words = ["SOLVER.LAYER_DECAY", "0.5", "SOLVER.LR_SCALES", "{'heads.*': 2.0}"]
    words += ["BACKBONE.num_layers", "2", "BACKBONE.dropout", "0.0", "TRAIN.EMA_DECAY", "0.5"]
    # Neither BatchNorm nor a small epsilon, which would blow up the rounding of what is almost 0.
    words += ["HEADS.contrast.norm", "ln", "SOLVER.EPS", "0.01"]
    (ended,) = start(config(project, name="one"), words)
    assert ended.code == 0, ended
    path = config(project, name="parts")
    words += ["TRAIN.PARALLEL", "fsdp"]
    ended = start(path, words, 2, 0, signal.SIGTERM, 7)  # the first stage has six updates
    assert [process.code for process in ended] == [75, 75], ended
    assert [process.code for process in start(path, words, 2)] == [0, 0]
    for stage, updates in (("stage_0", 6), ("stage_1", 8)):
        found, expected = (lines(project / name / stage) for name in ("parts", "one"))
        assert len(found) == len(expected) == updates
        for one, other in zip(found, expected, strict=True):
            assert one["lr"] == other["lr"]
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        found, expected = (
            read_checkpoint(find_checkpoint(str(project / name / stage)))
            for name in ("parts", "one")
        )
        assert found["optimizer_names"] == expected["optimizer_names"]
        for kind in ("model_state", "ema_state", "optimizer_state"):
            torch.testing.assert_close(found[kind], expected[kind], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_killed_between_the_stages_it_continues(project, chained, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    loaded = prepare(config(project))
    original = torch.save

    def die(value, file, **options):
        if "stage_1" in getattr(file, "name", ""):
            raise KeyboardInterrupt
        original(value, file, **options)

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        run(loaded)
    monkeypatch.undo()
    assert len(unfinished_stages(loaded)) == 2
    run(loaded)
    require_equals_chain(project, chained(1))
    caplog.clear()
    assert [stage.cfg.DATA.TRAIN_CROP_SIZE for stage in unfinished_stages(loaded)] == [32]
    run(loaded)  # finished: nothing is done again
    require_equals_chain(project, chained(1))
    assert "resumed from" in caplog.text
    assert "stage_0/checkpoints" not in caplog.text


def test_the_last_stage_is_found_from_the_folder_of_the_run(project):
    path = config(project)
    run(prepare(path))
    folder = project / "staged"
    found = find_checkpoint(folder)
    assert found == folder / "stage_1/checkpoints/checkpoint_epoch_00002.pyth"
    assert read_checkpoint(found)["model_state"]["backbone.position.height"].shape[0] == 4
    runs = write_run_report([folder], project / "report.html")
    assert [run.folder.name for run in runs] == ["staged", "stage_0", "stage_1"]
    assert len(runs[2].checkpoints) == 2
    # Fine-tuning at the small resolution takes the large stage's weights.
    words = ["TRAIN.CHECKPOINT_FILE_PATH", str(folder), "SOLVER.MAX_EPOCH", "1"]
    result = run(prepare(project / "configs/finetune.yaml", words))
    assert result["protocol"]["decoded_videos"] == 8
    # The config of a stage, as saved, is the stage.
    again = load_config(folder / "stage_1/config.yaml").cfg
    assert again == stages_of(load_config(path))[1].cfg
    assert load_config(folder / "config.yaml").cfg == load_config(path).cfg


def finetune(project, stages):
    """A fine-tuning in stages that is tested, at the large resolution in its last stage."""
    content = yaml.safe_load((project / "configs/finetune.yaml").read_text())
    content["TRAIN"] |= {"STAGES": stages, "CHECKPOINT_FILE_PATH": ""}
    path = project / "configs/staged_finetune.yaml"
    write_config(path, content)
    return path


def test_the_last_stage_is_tested_and_can_be_tested_again(project):
    smaller = {"SOLVER": {"MAX_EPOCH": 1}, "TRAIN": {"EVAL_PERIOD": 1}}
    path = finetune(project, [smaller, {"BACKBONE": {"dropout": 0.0}}])
    first = run(prepare(path))
    folder = project / "finetune"
    assert json.loads((folder / "test/result.json").read_text()) == first
    assert len(lines(folder / "stage_0", "val_epoch")) == 1
    assert not (folder / "stage_0/test").exists()
    assert run(prepare(path, ["TRAIN.ENABLE", "False"])) == first
    assert last_stage(prepare(path)).cfg.BACKBONE.dropout == 0.0


@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        ({"TRAIN": {"BACH_SIZE": 3}}, ["'TRAIN.BACH_SIZE'", "'TRAIN.BATCH_SIZE'", "TRAIN has "]),
        ({"TRAINING": {"BATCH_SIZE": 3}}, ["'TRAINING'", "the top has PLUGINS, TASK"]),
        ({"TRAIN": {"BATCH_SIZE": 0}}, ["TRAIN.BATCH_SIZE in", "positive"]),
        ({"SOLVER": {"LR_POLICY": "lineal"}}, ["SOLVER.LR_POLICY", "one of linear, cosine"]),
        ({"MASKER": {"num_blocs": 3}}, ["MASKER", "'num_blocs'", "did you mean 'num_blocks'"]),
        ({"OUTPUT_DIR": "x"}, ["OUTPUT_DIR in", "cannot be set in a stage"]),
        ({"TRAIN.STAGES": []}, ["TRAIN.STAGES in", "cannot be set in a stage"]),
        ({"SOLVER": {"SCHEDULE_EPOCHS": 4}}, ["SOLVER.SCHEDULE_EPOCHS", "at least", "(5)"]),
        ({"SOLVER.OPTIMIZING_METHOD": "sgd"}, ["adamw and then sgd", "CHECKPOINT_OPTIMIZER False"]),
    ],
)
def test_a_wrong_key_is_an_error_that_names_the_stage(project, stage, parts):
    path = config(project, [SMALL, stage])
    with pytest.raises(ValueError, match=r"TRAIN\.STAGES\[1\] in .*staged\.yaml") as error:
        prepare(path)
    for part in parts:
        assert part in str(error.value)


TWICE = {"TRAIN.BATCH_SIZE": 3, "TRAIN": {"BATCH_SIZE": 4}}


@pytest.mark.parametrize("stages", ["x", [3], {"0": {"LOG_PERIOD": 1}}, [TWICE]])
def test_stages_are_a_list_of_mappings(project, stages):
    path = config(project)
    content = yaml.safe_load(path.read_text())
    content["TRAIN"]["STAGES"] = stages
    write_config(path, content)
    with pytest.raises(ConfigError, match=r"TRAIN\.STAGES|BATCH_SIZE is given twice"):
        load_config(path)


def test_the_command_line_changes_all_stages_or_one(project):
    path = config(project)
    both = stages_of(load_config(path, ["SOLVER.MAX_EPOCH", "1", "MASKER.num_blocks", "2"]))
    assert [stage.cfg.SOLVER.MAX_EPOCH for stage in both] == [1, 1]
    assert [stage.cfg.MASKER.num_blocks for stage in both] == [2, 2]
    assert both[1].cfg.SOLVER.SCHEDULE_EPOCHS == 2
    one = stages_of(load_config(path, ["TRAIN.STAGES.1.SOLVER.MAX_EPOCH", "7"]))
    assert [stage.cfg.SOLVER.MAX_EPOCH for stage in one] == [3, 7]
    assert one[1].cfg.MASKER.num_blocks == 4
    with pytest.raises(ConfigError, match="no stage '2': 0, 1"):
        load_config(path, ["TRAIN.STAGES.2.SOLVER.MAX_EPOCH", "7"])


def test_nothing_starts_without_the_inputs_of_every_stage(project):
    path = config(project, [SMALL, {**LARGE, "TRAIN": {"TOKEN_STORE": "nowhere"}}])
    with pytest.raises(MissingInputError, match="no token store in .*nowhere"):
        run(prepare(path))
    assert not (project / "staged").exists()


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"TRAIN": {"TOKEN_STORE": "tokens_large"}}, "grid"),
        ({"TRAIN": {"BATCH_SIZE": 64}}, "only 8 training videos"),
        ({"BACKBONE": {"num_layers": 2}}, "another model.*layers.1"),
        ({"DATA": {"VOCAB_SIZE": 21}}, "vocab"),
        ({"HEADS": {"contrast": {"num_layers": 3}}}, "other parameters .*CHECKPOINT_OPTIMIZER"),
        ({"HEADS": {"contrast": {"hidden_dim": 4}}}, "other parameters .*CHECKPOINT_OPTIMIZER"),
        ({**LARGE, "TRAIN": {"TOKEN_STORE": "tokens_other"}}, "tokenizer_fingerprint"),
    ],
)
def test_a_stage_that_cannot_follow_is_found_before_the_first_is_trained(project, stage, message):
    write_large_store(project / "tokens_other", "A:2")
    with pytest.raises(ConfigError, match=rf"TRAIN\.STAGES\[1\].*{message}"):
        run(prepare(config(project, [SMALL, stage])))
    assert not (project / "staged").exists()


def test_folders_of_other_runs_are_refused(project):
    words = ["OUTPUT_DIR", str(project / "staged"), "SOLVER.MAX_EPOCH", "1"]
    run(prepare(project / "configs/pretrain.yaml", words))
    with pytest.raises(ConfigError, match="a run without TRAIN.STAGES"):
        run(prepare(config(project)))
    path = config(project, name="other")
    run(prepare(path, ["SOLVER.MAX_EPOCH", "1"]))
    with pytest.raises(ConfigError, match="remove them, or choose another"):
        run(prepare(path, ["TRAIN.AUTO_RESUME", "False"]))


def test_without_moments_the_second_stage_starts_its_optimizer_anew(project):
    fresh = {**LARGE, "TRAIN": {**LARGE["TRAIN"], "CHECKPOINT_OPTIMIZER": False}}
    run(prepare(config(project, [SMALL, fresh])))
    steps = read_checkpoint(find_checkpoint(project / "staged"))["optimizer_state"]["state"]
    assert {int(state["step"]) for state in steps.values()} == {8}


def test_a_store_written_for_one_stage_is_not_needed_after_it(project):
    write_store(project / "tokens_first", ("16center16",))
    first = {**SMALL, "TRAIN": {"TOKEN_STORE": "tokens_first"}}
    path = config(project, [first, LARGE])
    run(prepare(path))
    for file in sorted((project / "tokens_first").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    run(prepare(path, ["TRAIN.STAGES.1.SOLVER.MAX_EPOCH", "3"]))
    assert find_checkpoint(project / "staged").name == "checkpoint_epoch_00003.pyth"


def extraction_config(project, stages):
    """Videos and stages whose tokens are to be extracted from them."""
    clips = project / "data" / "clips"
    clips.mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    for number in range(8):
        (clips / f"video_{number}.mp4").write_bytes(encode_webm(frames, fps=2))
    data = {**pretrain_config(project)["DATA"], "VOCAB_SIZE": 64}
    return config(project, stages, TOKENIZER="VQVAETokenizer", DATA=data)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_the_tokens_of_every_stage_are_extracted_and_trained_on(project):
    first = {**SMALL, "TRAIN": {"TOKEN_STORE": "made_16"}}
    second = {**LARGE, "TRAIN": {"TOKEN_STORE": "made_32", "BATCH_SIZE": 2}}
    last = {**LARGE, "TRAIN": {"TOKEN_STORE": "made_32"}, "SOLVER": {"MAX_EPOCH": 1}}
    loaded = prepare(extraction_config(project, [first, second, last]))
    with pytest.raises(MissingInputError) as error:
        run(loaded)
    for name in ("made_16", "made_32"):
        assert str(error.value).count(name) == 1
    summaries = extract_stores(loaded)
    assert {name: done.num_extracted for name, done in summaries.items()} == {
        "stage_0 TRAIN": 8,
        "stage_1 TRAIN": 8,
    }
    assert TokenStore(project / "made_16").meta.grid == (2, 2)
    assert TokenStore(project / "made_32").meta.grid == (4, 4)
    run(loaded)
    assert find_checkpoint(project / "staged").parent.parent.name == "stage_2"


def test_stages_cannot_want_different_tokens_in_one_store(project):
    same = {"TOKEN_STORE": "made"}
    path = extraction_config(project, [{**SMALL, "TRAIN": same}, {**LARGE, "TRAIN": same}])
    with pytest.raises(ConfigError, match="stage_1 TRAIN wants other videos, views"):
        extract_stores(prepare(path))
    assert not (project / "made").exists()
