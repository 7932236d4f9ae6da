"""Heads against numbers of the authors' code, and what they promise beyond them."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vimpac_ext.backbones import VimpacTransformer
from vimpac_ext.backbones.vimpac import convert_original_state_dict, to_original_state_dict
from vimpac_ext.heads import ClassificationHead, MaskedTokenHead, ProjectionHead

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "original"
HEAD_FIXTURES = ["heads_bn2.npz", "heads_bn3.npz", "heads_bn2_after.npz", "heads_ln2.npz"]
TIED = ("backbone.embedding.weight", "mlm_head.decoder.weight")


def read_model(name):
    """Backbone and heads of a fixture with its weights, and the fixture's arrays."""
    data = np.load(FIXTURES / name)
    config = json.loads(str(data["config"]))
    state = {k[3:]: torch.tensor(data[k]) for k in data.files if k.startswith("sd/")}
    backbone = VimpacTransformer(
        grid=(config["T"], config["H"], config["W"]),
        vocab_size=config["vocab"],
        embed_dim=config["hid"],
        num_layers=config["layers"],
        num_heads=config["heads"],
    )
    parts = {"backbone": backbone}
    if "cls_head" in config:
        options = config["cls_head"]
        parts["token_head"] = MaskedTokenHead(config["hid"], backbone.token_embedding)
        parts["projection_head"] = ProjectionHead(
            config["hid"],
            hidden_dim=options["hid_dim"],
            output_dim=options["output_dim"],
            num_layers=options["num_layers"],
            norm=options["norm_type"],
            activation=options["activation"],
            norm_after_last=options["bn_after_proj"],
        )
    if "num_classes" in config:
        parts["classification_head"] = ClassificationHead(config["hid"], config["num_classes"])
    converted = convert_original_state_dict(state)
    assert set(converted) == set(parts)
    for part, module in parts.items():
        module.load_state_dict(converted[part])
        module.eval()
    return parts, state, data


def assert_equal(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, torch.tensor(theirs), atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", HEAD_FIXTURES)
def test_heads_equal_the_original(name):
    parts, state, data = read_model(name)
    projection_head = parts["projection_head"]
    with torch.no_grad():
        outputs = parts["backbone"](torch.tensor(data["tokens"]))
        assert_equal(outputs["cls"], data["cls"])
        assert_equal(outputs["features"], data["hiddens"])
        assert_equal(parts["token_head"].logits(outputs["features"]), data["mlm_logits"])
        assert_equal(projection_head(outputs)["projection"], data["cls_head_eval"])
        projection_head.train()
        assert_equal(projection_head(outputs)["projection"], data["cls_head_train"], 3e-5)
    after = convert_original_state_dict(
        {
            key.removeprefix("sd_after_train_forward/"): torch.tensor(data[key])
            for key in data.files
            if key.startswith("sd_after_train_forward/")
        }
    )
    statistics = dict(projection_head.named_buffers())
    assert set(after.get("projection_head", {})) == set(statistics)  # none with LayerNorm
    for key, statistic in statistics.items():
        assert_equal(statistic, after["projection_head"][key].numpy(), 3e-5)
    original = to_original_state_dict(convert_original_state_dict(state), "T,H|W")
    assert set(original) == set(state)
    assert all(torch.equal(original[key], state[key]) for key in state)


def test_token_head_equals_the_original_on_the_dalle_vocabulary():
    parts, _, data = read_model("heads_realvocab.npz")
    with torch.no_grad():
        outputs = parts["backbone"](torch.tensor(data["tokens"]))
        logits = parts["token_head"].logits(outputs["features"])
    positions = torch.tensor(data["positions"])
    assert_equal(logits[tuple(positions.T)], data["mlm_logits_at"])
    assert np.array_equal(logits.argmax(-1).numpy(), data["argmax"])
    assert_equal(parts["projection_head"](outputs)["projection"].detach(), data["cls_head_eval"])


def test_classification_equals_the_original():
    parts, _, data = read_model("finetune_eval.npz")
    tokens = torch.tensor(data["tokens"])  # (videos, views, T, H, W)
    with torch.no_grad():
        outputs = parts["backbone"](tokens.flatten(0, 1))
        logits = parts["classification_head"](outputs)["class_logits"].unflatten(0, (4, 3))
    assert_equal(logits, data["logits"])
    probabilities = logits.softmax(-1).mean(1)
    assert_equal(probabilities, data["avg_probs"])
    assert np.array_equal(probabilities.argmax(-1).numpy(), data["prediction"])


def token_head_and_outputs():
    torch.manual_seed(0)
    embedding = nn.Embedding(25, 8)
    features = torch.randn(2, 3, 4, 5, 8, requires_grad=True)
    return MaskedTokenHead(8, embedding), {
        "features": features,
        "mask": torch.rand(2, 3, 4, 5) < 0.3,
    }


def test_token_head_looks_at_hidden_positions_only_and_in_order():
    head, outputs = token_head_and_outputs()
    logits = head(outputs)["token_logits"]
    torch.testing.assert_close(logits, head.logits(outputs["features"])[outputs["mask"]])
    logits.sum().backward()
    touched = (outputs["features"].grad != 0).any(-1)
    assert torch.equal(touched, outputs["mask"])
    outputs["mask"] = torch.zeros_like(outputs["mask"])
    assert head(outputs)["token_logits"].shape == (0, 25)


def test_the_tied_embedding_has_one_name_and_one_owner():
    head, outputs = token_head_and_outputs()
    owner = nn.ModuleDict({"embedding": head.token_embedding, "head": head})
    names = [name for name, _ in owner.named_parameters()]
    assert [name for name in names if "embedding" in name] == ["embedding.weight"]
    assert sorted(names) == sorted(owner.state_dict())
    head(outputs)["token_logits"].logsumexp(-1).sum().backward()
    assert owner["embedding"].weight.grad.abs().sum() > 0
    twin = copy.deepcopy(owner)
    assert twin["head"].token_embedding is twin["embedding"]
    assert twin["embedding"] is not owner["embedding"]
    moved = owner.to_empty(device="meta")
    assert moved["head"].token_embedding.weight is moved["embedding"].weight


def test_a_batch_of_one_is_refused_by_batch_norm_in_training_only():
    clip = {"cls": torch.zeros(1, 8)}
    head = ProjectionHead(8, hidden_dim=16, output_dim=4)
    with pytest.raises(ValueError, match="at least 2 clips"):
        head(clip)
    assert head.eval()(clip)["projection"].shape == (1, 4)
    layer_norm = ProjectionHead(8, hidden_dim=16, output_dim=4, norm="ln")
    assert layer_norm(clip)["projection"].shape == (1, 4)
    single = ProjectionHead(8, output_dim=4, num_layers=1)
    assert single(clip)["projection"].shape == (1, 4)


@pytest.mark.parametrize("norm", ["bn", "ln"])
@pytest.mark.parametrize("norm_after_last", [False, True])
def test_projection_uses_all_its_parameters(norm, norm_after_last):
    head = ProjectionHead(8, 16, 4, num_layers=3, norm=norm, norm_after_last=norm_after_last)
    head({"cls": torch.randn(6, 8)})["projection"].square().sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batch"}, "bn, ln"),
        ({"activation": "silu"}, "relu, gelu"),
        ({"num_layers": 0}, "num_layers=0"),
    ],
)
def test_bad_projection_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ProjectionHead(8, **options)


@pytest.mark.parametrize("make", ["token", "bn", "ln"])
def test_heads_start_as_the_originals(make):
    torch.manual_seed(1)
    if make == "token":
        head = MaskedTokenHead(64, nn.Embedding(50, 64))
    else:
        head = ProjectionHead(64, 96, 32, num_layers=3, norm=make, norm_after_last=True)
    for name, parameter in head.named_parameters():
        if parameter.ndim == 1:
            is_scale = "norm" in name and name.endswith("weight")
            assert (parameter == float(is_scale)).all(), name
            continue
        count = parameter.numel()
        assert parameter.mean().item() == pytest.approx(0, abs=0.1 / math.sqrt(count)), name
        assert parameter.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(2 * count)), name


def test_dropout_of_the_classifier_acts_on_its_input_in_training():
    head = ClassificationHead(1000, num_classes=1, dropout=0.25)
    nn.init.ones_(head.linear.weight)
    clip = {"cls": torch.ones(1, 1000)}
    assert head.eval()(clip)["class_logits"].item() == 1000
    torch.manual_seed(2)
    kept = head.train()(clip)["class_logits"].item() * 0.75
    assert kept == pytest.approx(750, abs=5 * math.sqrt(1000 * 0.25 * 0.75))
    assert kept != 1000


def test_a_new_classifier_finds_all_classes_equally_likely():
    head = ClassificationHead(8, num_classes=5)
    logits = head({"cls": torch.randn(3, 8)})["class_logits"]
    assert torch.equal(logits, torch.zeros(3, 5))


def test_whole_small_model_has_the_size_of_the_originals_script():
    with torch.device("meta"):
        backbone = VimpacTransformer(grid=(5, 16, 16), vocab_size=8192)
        heads = [MaskedTokenHead(512, backbone.token_embedding), ProjectionHead(512)]
    parameters = {p for module in (backbone, *heads) for p in module.parameters()}
    assert sum(p.numel() for p in parameters) / 1e6 == pytest.approx(31.29, abs=0.005)
