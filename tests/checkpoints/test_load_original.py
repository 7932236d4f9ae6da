"""Checkpoints of the authors' code as models: their outputs, and what is inferred."""

import argparse
import dataclasses
import json
import pickle
import pprint
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from vimpac_ext.backbones.vimpac import convert_original_state_dict, to_original_state_dict
from vimpac_ext.build import build
from vimpac_ext.checkpoints import OriginalCheckpointError, VimpacModel, load_original
from vimpac_ext.checkpoints.architecture import Architecture, infer_architecture
from vimpac_ext.engine.assembly import build_task
from vimpac_ext.plugins import import_builtin_components
from vimpac_ext.registries import BACKBONES, HEADS
from vimpac_ext.structures import TokenGrid

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "original"
SNAPSHOT = FIXTURES / "checkpoint" / "last"


def read(name):
    """Config, state dict and arrays of a fixture."""
    data = np.load(FIXTURES / name)
    state = {k[3:]: torch.tensor(data[k]) for k in data.files if k.startswith("sd/")}
    return json.loads(str(data["config"])), state, data


def assert_equal(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, torch.tensor(theirs), atol=tolerance, rtol=0)


def assert_outputs_of_the_snapshot(model):
    data = np.load(FIXTURES / "checkpoint_outputs.npz")
    with torch.inference_mode():
        outputs = model(torch.from_numpy(data["tokens"]), token_logits=True)
    assert not model.training
    assert_equal(outputs["cls"][:1], data["cls"])
    assert_equal(outputs["projection"], data["cls_head_eval"])
    assert_equal(outputs["features"][:1, 0], data["hiddens_first_frame"])
    assert outputs["token_logits"].shape == (2, 5, 16, 16, 65)
    assert_equal(outputs["token_logits"][:, 0, 0], data["mlm_logits_row"])


def put_folder(tmp_path):
    shutil.copytree(SNAPSHOT, tmp_path / "small" / "last")
    return tmp_path / "small"


def put_zip(tmp_path, folder="snap/pretrain/small/last/", compression=zipfile.ZIP_DEFLATED):
    path = tmp_path / "small.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in SNAPSHOT.iterdir():
            archive.write(file, folder + file.name)
    return path


def put_weights(tmp_path, state, name="weights.pt", **options):
    torch.save(state, tmp_path / name, **options)
    return tmp_path / name


def snapshot_state():
    return torch.load(SNAPSHOT / "classifier.pt", weights_only=True)


SOURCES = {
    "the folder above the snapshot": put_folder,
    "the snapshot folder": lambda tmp_path: put_folder(tmp_path) / "last",
    "classifier.pt in it": lambda tmp_path: put_folder(tmp_path) / "last" / "classifier.pt",
    "a zip": put_zip,
    "a zip that is not compressed": lambda t: put_zip(t, compression=zipfile.ZIP_STORED),
    "a zip without folders": lambda tmp_path: put_zip(tmp_path, folder=""),
    "the weights alone": lambda tmp_path: put_weights(tmp_path, snapshot_state()),
    "older container": lambda tmp_path: put_weights(
        tmp_path, snapshot_state(), _use_new_zipfile_serialization=False
    ),
    "module. before all keys": lambda tmp_path: put_weights(
        tmp_path, {f"module.{key}": value for key, value in snapshot_state().items()}
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_form_gives_the_authors_outputs(tmp_path, source):
    model, config = load_original(SOURCES[source](tmp_path))
    assert_outputs_of_the_snapshot(model)
    assert config.BACKBONE.layout == "T,H,W"
    assert config.BACKBONE.halve_attention
    assert config.BACKBONE.halve_mlp
    assert (config.DATA.NUM_FRAMES, config.DATA.TRAIN_CROP_SIZE) == (5, 128)
    assert config.DATA.VOCAB_SIZE == 60


def test_the_configuration_builds_the_same_model():
    import_builtin_components()  # as every tool does
    model, config = load_original(SNAPSHOT)
    task = build_task(config)
    task.load_state_dict(model.state_dict())
    assert sum(p.numel() for p in task.parameters()) == sum(p.numel() for p in model.parameters())
    # What the options of the run say of its training.
    assert (config.SOLVER.BASE_LR, config.SOLVER.WARMUP_RATIO) == (1e-4, 0.05)
    assert (config.SOLVER.BETAS, config.SOLVER.MAX_EPOCH) == ([0.9, 0.999], 40)
    assert (config.TRAIN.BATCH_SIZE, config.MASKER.num_blocks) == (64, 5)
    backbone = build(BACKBONES, config["BACKBONE"], grid=(5, 16, 16), vocab_size=60)
    backbone.load_state_dict(model.backbone.state_dict())
    head = build(HEADS, config["HEADS"]["contrast"], embed_dim=64)
    head.load_state_dict(model.heads["contrast"].state_dict())


@pytest.mark.parametrize("name", sorted(p.name for p in FIXTURES.glob("backbone_*.npz")))
def test_backbones_alone_of_every_variant(tmp_path, name):
    fixture, state, data = read(name)
    grid = tuple(fixture[axis] for axis in "THW")
    # Tables that do not tell the grid need it; the tiny models have more heads than one per 64.
    given = {} if fixture["pos_emb"] == "hw_separation" else {"grid": grid}
    model, config = load_original(put_weights(tmp_path, state), num_heads=fixture["heads"], **given)
    with torch.inference_mode():
        outputs = model(torch.tensor(data["tokens"]))
    assert_equal(outputs["cls"], data["cls"])
    assert_equal(outputs["features"], data["hiddens"])
    section = config.BACKBONE
    assert section.layout == fixture["layout"]
    assert section.norm == ("pre_normalized_residual" if fixture["pre_ln"] else "post")
    assert section.position == fixture["pos_emb"]
    assert (section.halve_attention, section.halve_mlp) == (
        fixture["halve_att"],
        fixture["halve_mlp"],
    )
    assert (section.num_layers, section.embed_dim) == (fixture["layers"], fixture["hid"])
    assert fixture["vocab"] == config.DATA.VOCAB_SIZE
    assert ("TRAIN_CROP_SIZE" in config.DATA) == (grid[1] == grid[2])


@pytest.mark.parametrize("name", ["heads_bn2", "heads_bn3", "heads_bn2_after", "heads_ln2"])
def test_heads_of_every_variant(tmp_path, name):
    fixture, state, data = read(f"{name}.npz")
    head = fixture["cls_head"]
    model, config = load_original(
        put_weights(tmp_path, state), num_heads=fixture["heads"], activation=head["activation"]
    )
    with torch.inference_mode():
        outputs = model(torch.tensor(data["tokens"]), token_logits=True)
    assert_equal(outputs["token_logits"], data["mlm_logits"])
    assert_equal(outputs["projection"], data["cls_head_eval"])
    section = config.HEADS.contrast
    assert (section.norm, section.norm_after_last) == (head["norm_type"], head["bn_after_proj"])
    assert (section.num_layers, section.hidden_dim) == (head["num_layers"], head["hid_dim"])


def test_the_dalle_vocabulary(tmp_path):
    fixture, state, data = read("heads_realvocab.npz")
    model, config = load_original(put_weights(tmp_path, state), num_heads=fixture["heads"])
    with torch.inference_mode():
        logits = model(torch.tensor(data["tokens"]), token_logits=True)["token_logits"]
    assert np.array_equal(logits.argmax(-1).numpy(), data["argmax"])
    assert_equal(logits[tuple(torch.tensor(data["positions"]).T)], data["mlm_logits_at"])
    assert config.TOKENIZER.NAME == "DalleTokenizer"


def test_a_fine_tuned_model(tmp_path):
    fixture, state, data = read("finetune_eval.npz")
    model, config = load_original(put_weights(tmp_path, state), num_heads=fixture["heads"])
    with torch.inference_mode():
        outputs = model(torch.tensor(data["tokens"]).flatten(0, 1))
    assert_equal(outputs["class_logits"].unflatten(0, (4, 3)), data["logits"])
    assert ("FinetuneTask", fixture["num_classes"]) == (config.TASK.NAME, config.MODEL.NUM_CLASSES)
    with pytest.raises(ValueError, match="no token head, only classification"):
        model(torch.tensor(data["tokens"]).flatten(0, 1), token_logits=True)


def random_model(layout="T,H|W", position="hw_separation", grid=(3, 4, 4), **backbone):
    """A model, its weights under the authors' names, and tokens for it."""
    torch.manual_seed(0)
    section = {"NAME": "VimpacTransformer", "embed_dim": 128, "num_layers": 1, "layout": layout,
               "position": position, "halve_mlp": False, "halve_attention": False, "norm": "post",
               **backbone}  # fmt: skip
    architecture = Architecture(TokenGrid(*grid), 20, section, heads={})
    model = VimpacModel(architecture).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    state = to_original_state_dict({"backbone": model.backbone.state_dict()}, layout)
    return model, state, torch.randint(0, 20, (2, *grid))


def put_snapshot(tmp_path, state, options, text_only=False):
    put_weights(tmp_path, state, "classifier.pt")
    if text_only:
        (tmp_path / "args.txt").write_text(pprint.pformat(options))
    else:
        (tmp_path / "args.pickle").write_bytes(pickle.dumps(argparse.Namespace(**options)))
    return tmp_path


def assert_same_outputs(found, expected, tokens):
    with torch.inference_mode():
        for key, value in expected(tokens).items():
            torch.testing.assert_close(found(tokens)[key], value)


@pytest.mark.parametrize("text_only", [False, True], ids=["args.pickle", "args.txt"])
def test_axes_that_tensors_cannot_tell_come_from_the_options(tmp_path, text_only):
    model, state, tokens = random_model(layout="W,T,H")
    folder = put_snapshot(tmp_path, state, {"model": "efflayoutW,T,H"}, text_only)
    found, config = load_original(folder)
    assert config.BACKBONE.layout == "W,T,H"
    assert_same_outputs(found, model, tokens)


def test_axes_that_nothing_tells_are_asked_for(tmp_path):
    model, state, tokens = random_model(layout="H|W,T,W")
    path = put_weights(tmp_path, state)
    with pytest.raises(OriginalCheckpointError, match=r"attend \(2, 1, 1\) axes.*give layout"):
        load_original(path)
    with pytest.raises(OriginalCheckpointError, match=r"layout 'T,H\|W' does not fit"):
        load_original(path, layout="T,H|W")
    assert_same_outputs(load_original(path, layout="H|W,T,W")[0], model, tokens)


def test_options_that_contradict_the_tensors_are_named_and_not_followed(tmp_path, caplog):
    caplog.set_level("INFO")
    model, state, tokens = random_model(layout="T,H,W")
    options = {"model": "efflayoutT,H|W", "layers": 6, "hid_dim": 512, "halve_mlp": False}
    found, config = load_original(put_snapshot(tmp_path, state, options))
    assert_same_outputs(found, model, tokens)
    assert (config.BACKBONE.num_layers, config.BACKBONE.layout) == (1, "T,H,W")
    for text in ("model 'efflayoutT,H|W'", "layers 6, the tensors 1", "hid_dim 512"):
        assert text in caplog.text
    assert "halve_mlp" not in caplog.text


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (3, {"NAME": "BlockMasker", "num_blocks": 3}),
        (-150, {"NAME": "UniformMasker", "ratio": 0.15}),
        (0, {"NAME": ""}),
    ],
)
def test_masks_are_those_of_the_options(tmp_path, blocks, expected):
    _, state, _ = random_model()
    options = {"mask_blocks": blocks, "mask_rand_replace": True}
    config = load_original(put_snapshot(tmp_path, state, options))[1]
    assert expected == config.MASKER
    assert config.TASK == {"NAME": "PretrainTask", "noise": "block"}


@pytest.mark.parametrize("position", ["temporal_separation", "default"])
def test_the_grid_behind_flat_tables(tmp_path, position):
    model, state, tokens = random_model(position=position)
    options = {"clip_len": 3, "frame_size": 32}
    assert_same_outputs(load_original(put_snapshot(tmp_path, state, options))[0], model, tokens)
    (tmp_path / "args.pickle").unlink()
    if position == "temporal_separation":  # frames are square in their code
        assert_same_outputs(load_original(tmp_path)[0], model, tokens)
    else:
        with pytest.raises(OriginalCheckpointError, match=r"rows: joint 49.*give grid"):
            load_original(tmp_path)
    with pytest.raises(OriginalCheckpointError, match=r"do not fit a grid of \(3, 5, 5\)"):
        load_original(tmp_path, grid=(3, 5, 5))
    assert_same_outputs(load_original(tmp_path, grid=(3, 4, 4))[0], model, tokens)


@pytest.mark.parametrize(
    ("head", "backbone", "millions"),
    [
        ((2, 2048), {"embed_dim": 512, "num_layers": 6}, 31.29),
        ((3, 4096), {"embed_dim": 1024, "num_layers": 24, "halve_mlp": True,
                     "halve_attention": True}, 233.21),
        ((2, 2048), {"embed_dim": 512, "num_layers": 6, "layout": "T,H,W"}, 31.29 + 35.75 - 29.44),
    ],
    ids=["small.sh", "large.sh", "small, axes in sequence (Table 14)"],
)  # fmt: skip
def test_the_scripts_models_are_recognised(head, backbone, millions):
    section = {"NAME": "VimpacTransformer", "layout": "T,H|W", "norm": "post", "dropout": 0.1,
               "position": "hw_separation", "halve_attention": False, "halve_mlp": False,
               **backbone}  # fmt: skip
    contrast = {"NAME": "ProjectionHead", "num_layers": head[0], "hidden_dim": head[1],
                "output_dim": 256, "norm": "bn", "activation": "relu",
                "norm_after_last": False}  # fmt: skip
    heads = {"token": {"NAME": "MaskedTokenHead"}, "contrast": contrast}
    expected = Architecture(TokenGrid(5, 16, 16), 8192, section, heads)
    with torch.device("meta"):
        model = VimpacModel(expected)
    parts = {"backbone": model.backbone, "token_head": model.heads["token"],
             "projection_head": model.heads["contrast"]}  # fmt: skip
    state = to_original_state_dict(
        {name: part.state_dict() for name, part in parts.items()}, section["layout"]
    )
    found = infer_architecture(state, convert_original_state_dict(state), options={})
    assert dataclasses.replace(found, notes=()) == expected
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=1e-3)


def test_the_number_of_heads_is_asked_for_where_the_width_does_not_tell(tmp_path):
    _, state, _ = read("backbone_t_hw_postln.npz")
    with pytest.raises(OriginalCheckpointError, match="width of 32.*give num_heads"):
        load_original(put_weights(tmp_path, state))


def test_weights_in_half_precision_run_in_float32(tmp_path):
    model, state, tokens = random_model()
    path = put_weights(tmp_path, {key: value.half() for key, value in state.items()})
    found, _ = load_original(path)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    with torch.inference_mode():
        torch.testing.assert_close(found(tokens)["cls"], model(tokens)["cls"], atol=0.02, rtol=0)


def test_loading_does_not_touch_the_random_state():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_original(SNAPSHOT)
    assert torch.equal(torch.rand(2), expected)


def test_the_newest_of_several_snapshots_is_taken_and_others_are_not_guessed(tmp_path):
    shutil.copytree(SNAPSHOT, tmp_path / "small" / "last")
    shutil.copytree(SNAPSHOT, tmp_path / "small" / "epoch3")
    torch.save({}, tmp_path / "small" / "epoch3" / "classifier.pt")
    assert_outputs_of_the_snapshot(load_original(tmp_path / "small")[0])
    (tmp_path / "small" / "last").rename(tmp_path / "small" / "epoch4")
    with pytest.raises(OriginalCheckpointError, match="2 files classifier.pt: epoch3/.*epoch4/"):
        load_original(tmp_path / "small")


def test_the_model_trains():
    """The parameters are leaves that take gradients, the tied table included."""
    model, _ = load_original(SNAPSHOT)
    outputs = model.train()(torch.zeros(2, 5, 16, 16, dtype=torch.int64), token_logits=True)
    (outputs["token_logits"].mean() + outputs["projection"].square().mean()).backward()
    assert all(p.grad is not None and p.is_leaf for p in model.parameters())
