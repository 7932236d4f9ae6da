"""Losses against numbers of the authors' code, closed forms and slow references."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vimpac_ext.backbones import VimpacTransformer
from vimpac_ext.backbones.vimpac import convert_original_state_dict
from vimpac_ext.heads import MaskedTokenHead, ProjectionHead
from vimpac_ext.losses import (
    CrossEntropyLoss,
    InfoNCELoss,
    MaskedTokenLoss,
    masked_token_accuracy,
)

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "original"


@pytest.mark.parametrize("case", range(5))
def test_info_nce_equals_the_original_in_value_and_gradient(case):
    data = np.load(FIXTURES / "nce_single.npz")
    hidden = torch.tensor(data[f"case{case}/hidden"], requires_grad=True)
    loss = InfoNCELoss(
        temperature=float(data[f"case{case}/temperature"]),
        normalize=bool(data[f"case{case}/hidden_norm"]),
    )({"projection": hidden}, {})
    loss.backward()
    expected_loss = torch.tensor(data[f"case{case}/loss"])
    expected_gradient = torch.tensor(data[f"case{case}/grad"])
    torch.testing.assert_close(loss, expected_loss, atol=6e-8, rtol=1e-7)
    torch.testing.assert_close(hidden.grad, expected_gradient, atol=6e-8, rtol=0)


def reference_info_nce(projection, temperature):
    """The paper's formula, anchor by anchor, in float64."""
    features = [row / row.norm() for row in projection.double()]
    num_videos = len(features) // 2
    total = 0.0
    for anchors, positives in (
        (features[:num_videos], features[num_videos:]),
        (features[num_videos:], features[:num_videos]),
    ):
        for i, anchor in enumerate(anchors):
            denominator = sum(math.exp(float(anchor @ p) / temperature) for p in positives)
            denominator += sum(
                math.exp(float(anchor @ a) / temperature) for k, a in enumerate(anchors) if k != i
            )
            probability = math.exp(float(anchor @ positives[i]) / temperature) / denominator
            total -= temperature * math.log(probability) / num_videos
    return total


@pytest.mark.parametrize("num_videos", [1, 2, 7])
def test_info_nce_equals_the_formula(num_videos):
    torch.manual_seed(num_videos)
    projection = torch.randn(2 * num_videos, 5, requires_grad=True)
    loss = InfoNCELoss(temperature=0.3)({"projection": projection}, {})
    assert loss.item() == pytest.approx(reference_info_nce(projection.detach(), 0.3), abs=1e-6)
    loss.backward()
    assert projection.grad.isfinite().all()


def test_info_nce_of_one_video_is_zero():
    assert InfoNCELoss()({"projection": torch.randn(2, 5)}, {}).item() == 0.0


def test_info_nce_is_computed_in_float32_under_autocast():
    torch.manual_seed(0)
    projection = torch.randn(8, 16)
    exact = InfoNCELoss()({"projection": projection.bfloat16().float()}, {})
    with torch.autocast("cpu", torch.bfloat16):
        loss = InfoNCELoss()({"projection": projection.bfloat16()}, {})
    assert loss.dtype == torch.float32
    assert torch.equal(loss, exact)


def test_info_nce_wants_pairs():
    with pytest.raises(ValueError, match="got 3 clips"):
        InfoNCELoss()({"projection": torch.randn(3, 5)}, {})


def test_masked_token_loss_is_the_mean_negative_log_likelihood():
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 9), torch.randint(9, (6,))
    loss = MaskedTokenLoss()({"token_logits": logits.bfloat16()}, {"token_targets": targets})
    rows = logits.bfloat16().double().numpy()
    expected = np.mean(
        [np.log(np.exp(row).sum()) - row[t] for row, t in zip(rows, targets, strict=True)]
    )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_without_masked_tokens_the_loss_is_zero_with_a_warning():
    weight = torch.randn(9, 4, requires_grad=True)
    outputs = {"token_logits": torch.randn(0, 4) @ weight.T}
    targets = {"token_targets": torch.zeros(0, dtype=torch.int64)}
    with pytest.warns(UserWarning, match="no token is masked"):
        loss = MaskedTokenLoss()(outputs, targets)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert masked_token_accuracy(outputs, targets).item() == 0.0


def test_masked_token_accuracy_counts_hits():
    logits = torch.eye(4)[[0, 1, 2, 2]]
    targets = torch.tensor([0, 1, 2, 3])
    accuracy = masked_token_accuracy({"token_logits": logits}, {"token_targets": targets})
    assert accuracy.item() == 0.75


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_is_the_originals(smoothing):
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 7), torch.randint(7, (5,))
    log_probabilities = logits.double().log_softmax(-1)
    likelihood = log_probabilities[torch.arange(5), labels]
    expected = -((1 - smoothing) * likelihood + smoothing * log_probabilities.mean(-1)).mean()
    loss = CrossEntropyLoss(label_smoothing=smoothing)({"class_logits": logits}, {"labels": labels})
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("step", [0, 1])  # the learning rate of step 0 is 0: the same weights
def test_pretraining_losses_and_gradients_equal_the_original(step):
    data = np.load(FIXTURES / "train_steps.npz")
    config = json.loads(str(data["config"]))
    state = {k[3:]: torch.tensor(data[k]) for k in data.files if k.startswith("sd/")}
    backbone = VimpacTransformer(
        grid=(config["T"], config["H"], config["W"]),
        vocab_size=config["vocab"],
        embed_dim=config["hid"],
        num_layers=config["layers"],
        num_heads=config["heads"],
        dropout=0.0,
    )
    modules = {
        "backbone": backbone,
        "token_head": MaskedTokenHead(config["hid"], backbone.token_embedding),
        "projection_head": ProjectionHead(
            config["hid"], config["cls_head"]["hid_dim"], config["cls_head"]["output_dim"]
        ),
    }
    for name, weights in convert_original_state_dict(state).items():
        modules[name].load_state_dict(weights)

    labels = torch.tensor(data[f"step{step}/labels"])
    mask = labels != -100
    outputs = {**backbone(torch.tensor(data[f"step{step}/masked"])), "mask": mask}
    outputs |= modules["token_head"](outputs)
    outputs |= modules["projection_head"](outputs)
    token_loss = MaskedTokenLoss()(outputs, {"token_targets": labels[mask]})
    contrast_loss = InfoNCELoss(temperature=config["temperature"])(outputs, {})
    assert token_loss.item() == pytest.approx(float(data[f"step{step}/mlm_loss"]), abs=1e-5)
    assert contrast_loss.item() == pytest.approx(float(data[f"step{step}/nce_loss"]), abs=1e-5)

    (token_loss + contrast_loss).backward()
    parameters = {
        (name, key): parameter
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
    }
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in parameters.values()))
    assert norm == pytest.approx(float(data[f"step{step}/grad_norm"]), abs=2e-5)
    if step == 0:
        gradients = convert_original_state_dict(
            {k[5:]: torch.tensor(data[k]) for k in data.files if k.startswith("grad/")}
        )
        expected = {(name, key): g for name, keys in gradients.items() for key, g in keys.items()}
        assert set(expected) == set(parameters)
        for key, gradient in expected.items():
            torch.testing.assert_close(parameters[key].grad, gradient, atol=1e-5, rtol=0)
