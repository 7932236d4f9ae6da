"""The authors' checkpoint files <-> ours: exact both ways, and of use to the engine."""

import argparse
import copy
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_project import make_tiny_project

from vimpac_ext.backbones.vimpac import to_original_state_dict
from vimpac_ext.checkpoints import OriginalCheckpointError, load_original, read_original
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.assembly import build_task
from vimpac_ext.engine.checkpoint import (
    Checkpointer,
    CheckpointError,
    initialise_moments,
    initialise_weights,
    load_model,
    newest_checkpoint,
    read_checkpoint,
)
from vimpac_ext.engine.conversion import convert_to_original, convert_to_ours
from vimpac_ext.engine.optim import build_optimizer
from vimpac_ext.files import sha256_of

SNAPSHOT = Path(__file__).resolve().parent.parent / "fixtures" / "original" / "checkpoint" / "last"


@pytest.fixture
def converted(tmp_path):
    path = tmp_path / "ours.pyth"
    convert_to_ours(SNAPSHOT, path)
    return path


def assert_same_files(found, expected):
    ours, theirs = (read_original(folder, with_optimizer=True) for folder in (found, expected))
    assert list(ours.state) == list(theirs.state)
    assert all(torch.equal(ours.state[key], theirs.state[key]) for key in theirs.state)
    assert ours.arguments == theirs.arguments
    assert ours.scheduler == theirs.scheduler
    assert ours.optimizer["param_groups"] == theirs.optimizer["param_groups"]
    assert ours.optimizer["state"].keys() == theirs.optimizer["state"].keys()
    for number, state in theirs.optimizer["state"].items():
        found_state = ours.optimizer["state"][number]
        assert found_state["step"] == state["step"]
        assert torch.equal(found_state["exp_avg"], state["exp_avg"])
        assert torch.equal(found_state["exp_avg_sq"], state["exp_avg_sq"])


def test_the_way_there_and_back_is_exact(converted, tmp_path):
    convert_to_original(converted, tmp_path / "back" / "last")
    assert_same_files(tmp_path / "back", SNAPSHOT)
    for name in ("args.pickle", "args.txt"):
        assert (tmp_path / "back/last" / name).read_text("latin1").strip() == (
            SNAPSHOT / name
        ).read_text("latin1").strip()
    # ... and there again.
    convert_to_ours(tmp_path / "back", tmp_path / "again.pyth")
    assert_same_checkpoint(tmp_path / "again.pyth", converted)


def assert_same_checkpoint(found, expected):
    ours, theirs = read_checkpoint(found), read_checkpoint(expected)
    for key in ("cfg", "epoch", "update", "optimizer_names", "original"):
        assert ours[key] == theirs[key], key
    assert ours["model_state"].keys() == theirs["model_state"].keys()
    for key, value in theirs["model_state"].items():
        assert torch.equal(ours["model_state"][key], value)
    assert_same_moments(ours, theirs)


def assert_same_moments(ours, theirs):
    states = [
        {c["optimizer_names"][i]: s for i, s in c["optimizer_state"]["state"].items()}
        for c in (ours, theirs)
    ]
    assert states[0].keys() == states[1].keys()
    for name, state in states[1].items():
        assert all(torch.equal(states[0][name][key], state[key]) for key in state), name


def test_the_written_model_gives_the_authors_outputs(converted):
    cfg = prepare(converted.with_suffix(".yaml")).cfg
    task = build_task(cfg).eval()
    assert load_model(converted, task, {"tokenizer_fingerprint": "any"}) == 2
    data = np.load(SNAPSHOT.parent.parent / "checkpoint_outputs.npz")
    with torch.no_grad():
        outputs = task.backbone(torch.from_numpy(data["tokens"]).long())
        projection = task.heads["contrast"](outputs)["projection"]
    torch.testing.assert_close(
        projection, torch.from_numpy(data["cls_head_eval"]), atol=1e-5, rtol=0
    )


def test_the_configuration_inside_is_the_one_beside(converted):
    inside = yaml.safe_load(read_checkpoint(converted)["cfg"])
    assert inside == yaml.safe_load(prepare(converted.with_suffix(".yaml")).cfg.dump())


def test_moments_belong_to_the_parameters_that_they_came_from(converted):
    """Against the documented order of the authors' optimizer."""
    data = np.load(SNAPSHOT.parent.parent / "checkpoint_outputs.npz")
    order = json.loads(str(data["param_order"]))
    undecayed = [name for name in order if name.endswith(".bias") or "LayerNorm" in name
                 or ".ln." in name or ".ln_pre." in name]  # fmt: skip
    decayed = [name for name in order if name not in undecayed]
    numbered = {name: number for number, name in enumerate([*decayed, *undecayed])}
    theirs = torch.load(SNAPSHOT / "optimizer.pt", weights_only=True)["state"]
    task = build_task(prepare(converted.with_suffix(".yaml")).cfg)
    optimizer = torch.optim.AdamW(task.parameters())
    initialise_moments(converted, task, optimizer)
    for moment in ("exp_avg", "exp_avg_sq"):

        def of(name, moment=moment):
            return theirs[numbered[name]][moment]

        block = "backbone.transformer.resblocks.0.attention_blocks.1"
        qkv = task.backbone.layers[0].attention_blocks[1].attention.qkv
        stacked = torch.cat(
            [of(f"{block}.attentions.0.attention.{which}.weight")
             for which in ("query", "key", "value")]
        )  # fmt: skip
        assert torch.equal(optimizer.state[qkv.weight][moment], stacked)
        pairs = {
            "backbone.embedding.weight": task.backbone.token_embedding.weight,
            "backbone.ln_pre.bias": task.backbone.input_norm.bias,
            "mlm_head.bias": task.heads["token"].bias,
            "cls_head.mlp.bn_0.weight": task.heads["contrast"].norms[0].weight,
        }
        for name, parameter in pairs.items():
            assert torch.equal(optimizer.state[parameter][moment], of(name)), name
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}


@pytest.mark.parametrize("method", ["adamw", "adamw_original"])
@pytest.mark.parametrize("no_decay", ["vectors", "original"])
def test_moments_are_taken_whatever_the_groups_and_resized(converted, method, no_decay):
    overrides = ["SOLVER.OPTIMIZING_METHOD", method, "SOLVER.NO_DECAY", no_decay]
    overrides += ["DATA.NUM_FRAMES", "7", "DATA.TRAIN_CROP_SIZE", "160"]
    cfg = prepare(converted.with_suffix(".yaml"), overrides).cfg
    task = build_task(cfg)
    optimizer = build_optimizer(task, cfg.SOLVER)
    report = initialise_weights(converted, task, {})
    assert len(report.resized) == 3
    assert not report.missing
    initialise_moments(converted, task, optimizer)
    for parameter in task.parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def test_converted_checkpoints_start_runs_but_are_not_resumed(converted, tmp_path):
    cfg = prepare(converted.with_suffix(".yaml")).cfg
    task = build_task(cfg)
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(converted, folder / "checkpoints/checkpoint_epoch_00004.pyth")
    with pytest.raises(
        CheckpointError, match="not its state; give it as TRAIN.CHECKPOINT_FILE_PATH"
    ):
        Checkpointer(folder, "", {}).restore(task, build_optimizer(task, cfg.SOLVER))


def test_without_optimizer(tmp_path):
    report = convert_to_ours(SNAPSHOT, tmp_path / "a.pyth", with_optimizer=False)
    assert "optimizer: none" in str(report)
    cfg = prepare(tmp_path / "a.yaml").cfg
    task = build_task(cfg)
    optimizer = build_optimizer(task, cfg.SOLVER)
    with pytest.raises(CheckpointError, match="no optimizer state"):
        initialise_moments(tmp_path / "a.pyth", task, optimizer)
    convert_to_original(tmp_path / "a.pyth", tmp_path / "last")
    assert sorted(p.name for p in (tmp_path / "last").iterdir()) == [
        "args.pickle",
        "args.txt",
        "classifier.pt",
    ]


def fine_tuned_by_the_authors(folder):
    """A fine-tuned snapshot for the tiny project, written as their code would have."""
    torch.manual_seed(0)
    cfg = prepare(
        folder / "configs/finetune.yaml",
        ["TRAIN.CHECKPOINT_FILE_PATH", "", "BACKBONE.embed_dim", "64", "BACKBONE.num_heads", "1",
         "BACKBONE.layout", "T,H"],
    ).cfg  # fmt: skip
    task = build_task(cfg)
    for parameter in task.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    parts = {"backbone": task.backbone, "classification_head": task.heads["classification"]}
    state = to_original_state_dict({k: m.state_dict() for k, m in parts.items()}, "T,H")
    target = folder / "theirs"
    target.mkdir()
    torch.save(state, target / "classifier.pt")
    return cfg, task, target


def test_a_fine_tuned_model_of_theirs_is_tested_by_us(tmp_path):
    make_tiny_project(tmp_path)
    cfg, task, theirs = fine_tuned_by_the_authors(tmp_path)
    path = tmp_path / "converted.pyth"
    report = str(convert_to_ours(theirs, path))
    for text in ("fine-tuned: clips of 3 x 2 x 2 tokens, 20 codes, 4 classes", "layout T,H: the"):
        assert text in report
    config = {
        "_BASE_": str(tmp_path / "configs/finetune.yaml"),
        "BACKBONE": {"NAME": "VimpacTransformer", "embed_dim": 64, "num_heads": 1, "layout": "T,H"},
        "TRAIN": {"ENABLE": False},
        "TEST": {"CHECKPOINT_FILE_PATH": str(path)},
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(config))
    by_conversion = run(prepare(tmp_path / "test.yaml"))
    # The same by our own checkpoint of the same model.
    Checkpointer(tmp_path / "finetune", cfg.dump(), {}).save(
        task, build_optimizer(task, cfg.SOLVER), epoch=1, update=1
    )
    overrides = ["TEST.CHECKPOINT_FILE_PATH", str(tmp_path / "finetune")]
    assert run(prepare(tmp_path / "test.yaml", overrides)) == by_conversion


@pytest.fixture
def our_run(tmp_path):
    """Folder of a short pre-training with the options that the authors' code has, too."""
    configs = make_tiny_project(tmp_path)
    overrides = ["BACKBONE.embed_dim", "64", "BACKBONE.num_heads", "1", "BACKBONE.layout", "T,H,W"]
    overrides += ["SOLVER.MAX_EPOCH", "1", "SOLVER.BASE_LR", "0.002"]
    run(prepare(configs / "pretrain.yaml", overrides))
    return tmp_path / "pretrain"


def test_our_run_goes_to_the_authors_and_back(our_run, tmp_path):
    report = str(convert_to_original(our_run, tmp_path / "snap/last"))
    assert "58,449" not in report
    with (tmp_path / "snap/last/args.pickle").open("rb") as file:
        options = vars(pickle.load(file))
    expected = {"model": "efflayoutT,H,W", "hid_dim": 64, "layers": 1, "clip_len": 3,
                "frame_size": 16, "vocab_size": 20, "pos_emb": "hw_separation", "epoch": 0,
                "pre_activation": False, "halve_att": False, "nce_proj_hid_dim": 8, "lr": 0.002,
                "beta1": 0.9, "batch_size": 4, "nce_weight": 1.0}  # fmt: skip
    assert {name: options[name] for name in expected} == expected
    theirs = torch.load(tmp_path / "snap/last/optimizer.pt", weights_only=True)
    assert theirs["param_groups"][0]["weight_decay"] == 0.01
    assert theirs["param_groups"][0]["correct_bias"]
    assert len(theirs["state"]) == sum(len(g["params"]) for g in theirs["param_groups"])

    convert_to_ours(tmp_path / "snap", tmp_path / "back.pyth")
    ours = read_checkpoint(newest_checkpoint(our_run / "checkpoints"))
    # The shipped name of the head; it was chosen so in the tiny project.
    back = read_checkpoint(tmp_path / "back.pyth")
    assert back["model_state"].keys() == ours["model_state"].keys()
    for key, value in ours["model_state"].items():
        assert torch.equal(back["model_state"][key], value)
    assert_same_moments(back, ours)
    assert (back["epoch"], back["update"]) == (ours["epoch"], ours["update"]) == (1, 2)


def test_training_continues_from_a_converted_checkpoint(our_run, tmp_path, caplog):
    caplog.set_level("INFO")
    convert_to_original(our_run, tmp_path / "snap/last")
    convert_to_ours(tmp_path / "snap", tmp_path / "stage1.pyth")
    data = yaml.safe_load((tmp_path / "configs/pretrain.yaml").read_text())
    config = {"_BASE_": "stage1.yaml", "NUM_GPUS": 0, "TENSORBOARD": False, "LOG_PERIOD": 1,
              "OUTPUT_DIR": str(tmp_path / "stage2"), "DATA": data["DATA"],
              "TRAIN": {**data["TRAIN"], "CHECKPOINT_FILE_PATH": str(tmp_path / "stage1.pyth"),
                        "CHECKPOINT_OPTIMIZER": True},
              "SOLVER": {"SCHEDULE_EPOCHS": 2, "SCHEDULE_START_EPOCH": 1}}  # fmt: skip
    (tmp_path / "stage2.yaml").write_text(yaml.safe_dump(config))
    run(prepare(tmp_path / "stage2.yaml"))
    assert "0 resized, 0 skipped (not in the model), 0 left at their initialisation" in caplog.text
    after = read_checkpoint(newest_checkpoint(tmp_path / "stage2/checkpoints"))
    steps = {float(state["step"]) for state in after["optimizer_state"]["state"].values()}
    assert steps == {4.0}  # two updates before, two now
    lines = (tmp_path / "stage2/metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["lr"] for line in lines]
    assert rates == pytest.approx([0.002 * 2 / 4, 0.002 * 1 / 4])


def test_heads_may_have_other_names(our_run, tmp_path):
    path = newest_checkpoint(our_run / "checkpoints")
    checkpoint = read_checkpoint(path)
    cfg = yaml.safe_load(checkpoint["cfg"])
    cfg["HEADS"] = {"words": cfg["HEADS"]["token"], "pairs": cfg["HEADS"]["contrast"]}

    def renamed(name):
        return name.replace("heads.token", "heads.words").replace("heads.contrast", "heads.pairs")

    other = copy.deepcopy(checkpoint)
    other["cfg"] = yaml.safe_dump(cfg)
    other["model_state"] = {renamed(k): v for k, v in checkpoint["model_state"].items()}
    other["optimizer_names"] = [renamed(name) for name in checkpoint["optimizer_names"]]
    torch.save(other, tmp_path / "other.pyth")
    convert_to_original(tmp_path / "other.pyth", tmp_path / "a")
    convert_to_original(path, tmp_path / "b")
    assert_same_files(tmp_path / "a", tmp_path / "b")


def test_averaged_weights_are_the_ones_that_go_and_without_moments(our_run, tmp_path):
    path = newest_checkpoint(our_run / "checkpoints")
    checkpoint = read_checkpoint(path)
    checkpoint["ema_state"] = {k: v + 1 for k, v in checkpoint["model_state"].items()}
    torch.save(checkpoint, tmp_path / "averaged.pyth")
    convert_to_original(tmp_path / "averaged.pyth", tmp_path / "a")
    convert_to_original(path, tmp_path / "b")
    averaged, plain = (read_original(tmp_path / name).state for name in "ab")
    assert all(torch.equal(averaged[key], plain[key] + 1) for key in plain)
    assert not (tmp_path / "a/optimizer.pt").exists()


def test_of_other_optimizers_only_the_weights_go(tmp_path):
    configs = make_tiny_project(tmp_path)
    overrides = ["BACKBONE.embed_dim", "64", "BACKBONE.num_heads", "1", "BACKBONE.layout", "T"]
    overrides += ["SOLVER.MAX_EPOCH", "1", "SOLVER.OPTIMIZING_METHOD", "sgd"]
    run(prepare(configs / "pretrain.yaml", overrides))
    assert "optimizer: none" in str(convert_to_original(tmp_path / "pretrain", tmp_path / "last"))
    assert not (tmp_path / "last/scheduler.pt").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"BACKBONE": {"norm": "pre"}}, "no standard pre-LN"),
        ({"BACKBONE": {"layout": "T,HxW"}}, r"no joined axes \(layout 'T,HxW'\)"),
        ({"BACKBONE": {"num_heads": 2}}, "no 2 heads for a width of 64"),
        ({"HEADS": {"contrast": {"activation": "gelu"}}}, "no gelu in the projection head"),
        ({"HEADS": {"extra": {"NAME": "ClassificationHead"}}}, "classification.* is missing"),
        ({"HEADS": {"extra": {"NAME": "MyHead"}}}, "no .*head 'MyHead'"),
        ({"BACKBONE": {"NAME": "SlowFast"}}, "no backbone 'SlowFast'"),
        ({"BACKBONE": {"embed_dim": 128, "num_heads": 2}}, r"cls_token is \(64,\) in place of"),
        ({"DATA": None}, "it has no 'TRAIN_CROP_SIZE'"),
    ],
)
def test_models_that_the_authors_have_not_are_refused(our_run, tmp_path, change, message):
    checkpoint = read_checkpoint(newest_checkpoint(our_run / "checkpoints"))
    cfg = yaml.safe_load(checkpoint["cfg"])
    cfg["MODEL"]["NUM_CLASSES"] = 4
    for section, values in change.items():
        if values is None:
            cfg[section] = {}
            continue
        for name, value in values.items():
            if isinstance(value, dict):
                value = {**cfg[section].get(name, {}), **value}
            cfg[section][name] = value
    checkpoint["cfg"] = yaml.safe_dump(cfg)
    torch.save(checkpoint, tmp_path / "changed.pyth")
    with pytest.raises(CheckpointError, match=f"changed.pyth cannot be converted: .*{message}"):
        convert_to_original(tmp_path / "changed.pyth", tmp_path / "snap")
    assert not (tmp_path / "snap").exists()


def test_existing_files_are_not_replaced_unless_asked(converted, tmp_path):
    before = sha256_of(converted)
    with pytest.raises(FileExistsError, match=r"ours.pyth.*ours.yaml exists already; --overwrite"):
        convert_to_ours(SNAPSHOT, converted)
    converted.unlink()
    with pytest.raises(FileExistsError, match=r"ours.yaml exists"):
        convert_to_ours(SNAPSHOT, converted)
    convert_to_ours(SNAPSHOT, converted, overwrite=True)
    assert sha256_of(converted) == before

    folder = tmp_path / "last"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    convert_to_original(converted, folder)
    with pytest.raises(FileExistsError, match="args.pickle"):
        convert_to_original(converted, folder)
    convert_to_original(converted, folder, overwrite=True, with_optimizer=False)
    # An old optimizer beside new weights would be wrong; what is not ours stays.
    assert not (folder / "optimizer.pt").exists()
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(FileExistsError, match="is a file; the authors' format is a folder"):
        convert_to_original(converted, converted, overwrite=True)
    with pytest.raises(FileExistsError, match="last is a folder"):
        convert_to_ours(SNAPSHOT, folder, overwrite=True)
    with pytest.raises(ValueError, match="a.yaml is the name of the configuration"):
        convert_to_ours(SNAPSHOT, tmp_path / "a.yaml")


def test_nothing_is_written_or_replaced_when_reading_or_writing_fails(
    converted, tmp_path, monkeypatch
):
    before = {path: sha256_of(path) for path in tmp_path.iterdir()}
    (tmp_path / "bad.pt").write_bytes(b"PK\x03\x04 rubbish")
    with pytest.raises(OriginalCheckpointError, match="bad.pt"):
        convert_to_ours(tmp_path / "bad.pt", converted, overwrite=True)
    with pytest.raises(CheckpointError, match="bad.pt"):
        convert_to_original(tmp_path / "bad.pt", tmp_path / "last")
    (tmp_path / "bad.pt").unlink()

    def fails(content, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        convert_to_ours(SNAPSHOT, converted, overwrite=True)
    with pytest.raises(OSError, match="disk full"):
        convert_to_original(converted, tmp_path / "last")
    assert not list((tmp_path / "last").iterdir())
    (tmp_path / "last").rmdir()
    assert {path: sha256_of(path) for path in tmp_path.iterdir()} == before


def edited_optimizer(tmp_path, edit):
    folder = tmp_path / "last"
    shutil.copytree(SNAPSHOT, folder)
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    edit(optimizer)
    torch.save(optimizer, folder / "optimizer.pt")
    return folder


def swap_groups(optimizer):
    optimizer["param_groups"].reverse()


def swap_two(optimizer):
    state = optimizer["state"]
    state[1], state[2] = state[2], state[1]


def drop_key(optimizer):
    del optimizer["state"][7]  # one key.weight


def other_steps(optimizer):
    optimizer["state"][7]["step"] = 3


def no_steps(optimizer):
    optimizer["state"][0]["step"] = torch.zeros(2)


def odd_groups(optimizer):
    optimizer["param_groups"][0]["params"] = [[0]] * 25


def unknown_number(optimizer):
    optimizer["state"][99] = optimizer["state"][0]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (swap_groups, "it has groups of 29, 25 parameters; the model has 25 with and 29 without"),
        (swap_two, "exp_avg of number 1 does not have the shape of backbone.embedding.weight"),
        (drop_key, "a query, key or value .* is missing"),
        (other_steps, "have had different numbers of steps"),
        (no_steps, r"number 0 \(backbone.cls_param\) has no number of steps"),
        (odd_groups, "its groups have no numbered parameters"),
        (unknown_number, "it has a state for number 99"),
        (dict.clear, "it is not the state of an optimizer"),
    ],
)
def test_an_optimizer_of_another_model_is_refused(tmp_path, edit, message):
    folder = edited_optimizer(tmp_path, edit)
    with pytest.raises(OriginalCheckpointError, match=f"optimizer.pt beside .*{message}.*--no-opt"):
        convert_to_ours(folder, tmp_path / "a.pyth")
    assert not (tmp_path / "a.pyth").exists()
    convert_to_ours(folder, tmp_path / "a.pyth", with_optimizer=False)


def test_parameters_without_moments_stay_without(tmp_path):
    """For example of a head whose loss had no weight."""

    def drop_head(optimizer):
        for number in (21, 22, 23):  # the projection head's weights
            del optimizer["state"][number]

    folder = edited_optimizer(tmp_path, drop_head)
    convert_to_ours(folder, tmp_path / "a.pyth")
    checkpoint = read_checkpoint(tmp_path / "a.pyth")
    assert len(checkpoint["optimizer_state"]["state"]) == 42 - 3
    convert_to_original(tmp_path / "a.pyth", tmp_path / "back")
    assert_same_files(tmp_path / "back", folder)


def test_bare_weights_convert_and_do_not_invent_options(tmp_path):
    shutil.copy(SNAPSHOT / "classifier.pt", tmp_path / "small.pt")
    report = str(convert_to_ours(tmp_path / "small.pt", tmp_path / "a.pyth"))
    assert "epochs done: unknown, updates: unknown" in report
    convert_to_original(tmp_path / "a.pyth", tmp_path / "back")
    options = read_original(tmp_path / "back").arguments
    assert options["model"] == "efflayoutT,H,W"
    assert not options.keys() & {"lr", "epoch", "epochs", "batch_size"}


def test_grids_that_no_configuration_has_are_refused(tmp_path):
    data = np.load(SNAPSHOT.parent.parent / "backbone_t_hw_postln.npz")
    state = {k[3:]: torch.tensor(data[k]) for k in data.files if k.startswith("sd/")}
    torch.save(state, tmp_path / "oblong.pt")
    with pytest.raises(OriginalCheckpointError, match=r"oblong.pt is for clips of \(3, 4, 5\)"):
        convert_to_ours(tmp_path / "oblong.pt", tmp_path / "a.pyth", num_heads=4)
    load_original(tmp_path / "oblong.pt", num_heads=4)


def test_our_own_checkpoints_are_not_executed(tmp_path):
    marker = tmp_path / "executed"

    class Malicious:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    path = tmp_path / "evil.pyth"
    for content in ({"format": Malicious()}, {"cfg": argparse.Namespace(a=1)}):
        torch.save(content, path)
        for convert in (convert_to_original, convert_to_ours):
            with pytest.raises(ValueError, match="evil.pyth"):
                convert(path, tmp_path / "target")
    path.write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(CheckpointError, match="evil.pyth"):
        convert_to_original(path, tmp_path / "target")
    # YAML can name Python objects, too.
    good = tmp_path / "good.pyth"
    convert_to_ours(SNAPSHOT, good)
    checkpoint = read_checkpoint(good)
    checkpoint["cfg"] = f"a: !!python/object/apply:os.system ['touch {marker}']"
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match="evil.pyth cannot be converted"):
        convert_to_original(path, tmp_path / "target")
    assert not marker.exists()
    assert not (tmp_path / "target").exists()
