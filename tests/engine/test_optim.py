"""Optimizers: against the textbook, and the authors' five updates with all public pieces."""

import copy
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vimpac_ext.backbones import VimpacTransformer
from vimpac_ext.backbones.vimpac import convert_original_state_dict, to_original_state_dict
from vimpac_ext.checkpoints.components import merge_components, original_state_names
from vimpac_ext.config import load_config
from vimpac_ext.engine.optim import build_optimizer, parameter_groups
from vimpac_ext.engine.original_adamw import OriginalAdamW
from vimpac_ext.engine.schedule import learning_rate
from vimpac_ext.heads import ClassificationHead, MaskedTokenHead, ProjectionHead
from vimpac_ext.losses import InfoNCELoss, MaskedTokenLoss
from vimpac_ext.tasks import FinetuneTask, PretrainTask

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "original"


def solver(tmp_path, **values):
    path = tmp_path / "solver.yaml"
    path.write_text(json.dumps({"SOLVER": values}))  # JSON is YAML
    return load_config(path).cfg.SOLVER


def test_only_matrices_and_tables_decay_by_default():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decayed, others = parameter_groups(model, 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert len(others["params"]) == 3
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)


def stepped(optimizer, parameter, gradients):
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("method", ["adam", "adamw", "adamw_original", "sgd"])
def test_each_method_equals_its_formula(tmp_path, method):
    lr, beta1, beta2, eps, decay, momentum = 0.1, 0.9, 0.98, 1e-3, 0.5, 0.8
    cfg = solver(
        tmp_path, OPTIMIZING_METHOD=method, BASE_LR=lr, BETAS=[beta1, beta2], EPS=eps,
        WEIGHT_DECAY=decay, MOMENTUM=momentum,
    )  # fmt: skip
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    gradients = [0.3, -0.001, 0.02]
    found = stepped(build_optimizer(model, cfg), model.weight, [[[g]] for g in gradients])

    p, m, v = 2.0, 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        if method == "sgd":  # Nesterov, L2 decay in the gradient
            g += decay * p
            m = momentum * m + g if t > 1 else g
            p -= lr * (g + momentum * m)
            continue
        if method == "adam":
            g += decay * p
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        if method == "adamw_original":
            p -= lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (math.sqrt(v) + eps)
            p -= lr * decay * p
        else:
            p -= lr * decay * p if method == "adamw" else 0.0
            p -= lr * m_hat / (math.sqrt(v_hat) + eps)
    assert found.item() == pytest.approx(p, rel=1e-6)


def test_adam_takes_the_fused_kernels(tmp_path):
    for method in ("adam", "adamw"):
        optimizer = build_optimizer(nn.Linear(2, 2), solver(tmp_path, OPTIMIZING_METHOD=method))
        assert [group["fused"] for group in optimizer.param_groups] == [True, True]


def made_task():
    torch.manual_seed(0)
    backbone = VimpacTransformer((2, 2, 2), vocab_size=5, embed_dim=12, num_layers=1, num_heads=2)
    heads = {
        "token": MaskedTokenHead(12, backbone.token_embedding),
        "contrast": ProjectionHead(12, hidden_dim=6, output_dim=4, num_layers=3, norm="ln"),
    }
    return PretrainTask(backbone, heads, {}, masker=None, vocab_size=5)


def test_the_authors_optimizer_skips_parameters_without_gradient_and_groups_keep_their_rates():
    model = nn.Linear(2, 2)
    before = copy.deepcopy(model.state_dict())
    optimizer = OriginalAdamW(
        [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.2}], lr=0.1, weight_decay=0.1
    )
    model.bias.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(model.weight, before["weight"])
    assert model.weight not in optimizer.state
    expected = (before["bias"] - 0.2 * torch.ones(2)) * (1 - 0.2 * 0.1)
    torch.testing.assert_close(model.bias.detach(), expected)


def test_the_closure_is_called_with_gradients():
    model = nn.Linear(2, 1)

    def closure():
        loss = model(torch.ones(2)).sum()
        loss.backward()
        return loss

    assert OriginalAdamW(model.parameters()).step(closure).requires_grad


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"eps": -1.0}, {"betas": (0.9, 1.0)}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OriginalAdamW(nn.Linear(1, 1).parameters(), **wrong)


def test_state_survives_a_file_and_moves_between_the_variants_of_adamw(tmp_path):
    """A run that is saved and restored goes on as if it had not been."""
    model = nn.Linear(3, 2)
    optimizer = OriginalAdamW(parameter_groups(model, 0.1), lr=0.01)
    gradients = torch.randn(4, 2, 3)

    def update(optimizer, model, gradient):
        model.weight.grad, model.bias.grad = gradient.clone(), gradient[:, 0].clone()
        optimizer.step()

    for gradient in gradients[:2]:
        update(optimizer, model, gradient)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    other = copy.deepcopy(model)
    restored = OriginalAdamW(parameter_groups(other, 0.1), lr=0.5)
    restored.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    torch_model = copy.deepcopy(model)
    torch_adamw = torch.optim.AdamW(parameter_groups(torch_model, 0.1), lr=0.01, fused=True)
    torch_adamw.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for gradient in gradients[2:]:
        update(optimizer, model, gradient)
        update(restored, other, gradient)
        update(torch_adamw, torch_model, gradient)
    assert torch.equal(model.weight, other.weight)
    moments, others = (o.state_dict()["state"] for o in (optimizer, torch_adamw))
    assert moments.keys() == others.keys()
    for number, state in moments.items():
        assert state["step"] == others[number]["step"] == 4
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(state[name], others[number][name])


def names_of(model, parameters):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)] for p in parameters}


def test_the_authors_no_decay_goes_by_their_names():
    task = made_task()
    _, undecayed = parameter_groups(task, 0.1, "original")
    found = names_of(task, undecayed["params"])
    assert "heads.token.norm.bias" in found
    # ln_1 is in their list and ln_0 is not; "transform.2.weight" does not look like a norm.
    assert "heads.contrast.norms.1.weight" in found
    left_decayed = {"heads.token.norm.weight", "heads.contrast.norms.0.weight"}
    left_decayed |= {"backbone.cls_token", "backbone.position.cls"}
    assert not found & left_decayed
    assert names_of(task, parameter_groups(task, 0.1)[1]["params"]) > found - left_decayed


def test_parameters_that_the_authors_have_not_go_by_their_dimensions():
    class OwnHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3))
            self.matrix_bias = nn.Parameter(torch.ones(3, 3))

    backbone = made_task().backbone
    task = FinetuneTask(backbone, {"own": OwnHead(), "cls": ClassificationHead(12, 3)}, {})
    decayed, undecayed = parameter_groups(task, 0.1, "original")
    assert "heads.own.gain" in names_of(task, undecayed["params"])
    assert {"heads.own.matrix_bias", "heads.cls.linear.weight"} <= names_of(task, decayed["params"])
    with pytest.raises(ValueError, match="NO_DECAY original is for the VimpacTransformer"):
        parameter_groups(OwnHead(), 0.1, "original")
    with pytest.raises(ValueError, match="no_decay='all'"):
        parameter_groups(task, 0.1, "all")


@pytest.fixture(scope="module")
def five_steps():
    return np.load(FIXTURES / "train_steps.npz")


def group(data, name):
    prefix = f"{name}/"
    return {
        k.removeprefix(prefix): torch.tensor(data[k]) for k in data.files if k.startswith(prefix)
    }


class FixtureMasker:
    """Hides what the authors' code hid."""

    def __init__(self):
        self.mask = None

    def __call__(self, tokens, generator):
        return self.mask


def task_of(data):
    config = json.loads(str(data["config"]))
    head = config["cls_head"]
    backbone = VimpacTransformer(
        grid=(config["T"], config["H"], config["W"]),
        vocab_size=config["vocab"],
        embed_dim=config["hid"],
        num_layers=config["layers"],
        num_heads=config["heads"],
        layout=config["layout"],
        position=config["pos_emb"],
        dropout=0.0,
    )
    heads = {
        "token": MaskedTokenHead(config["hid"], backbone.token_embedding),
        "contrast": ProjectionHead(
            config["hid"],
            hidden_dim=head["hid_dim"],
            output_dim=head["output_dim"],
            num_layers=head["num_layers"],
        ),
    }
    losses = {
        "token": MaskedTokenLoss(config["mlm_weight"]),
        "contrast": InfoNCELoss(config["nce_weight"], config["temperature"]),
    }
    task = PretrainTask(backbone, heads, losses, masker=FixtureMasker(), vocab_size=config["vocab"])
    task.load_state_dict(merge_components(task, convert_original_state_dict(group(data, "sd"))))
    return task.train(), config


def with_original_names(task, tensors, layout):
    """Tensors of the task's parameters, under the authors' names."""
    prefixes = {"backbone": "backbone.", "token_head": "heads.token.",
                "projection_head": "heads.contrast."}  # fmt: skip
    state = {**task.state_dict(), **tensors}
    components = {
        component: {k.removeprefix(p): v for k, v in state.items() if k.startswith(p)}
        for component, p in prefixes.items()
    }
    return to_original_state_dict(components, layout)


def test_five_updates_of_the_authors_are_reproduced(five_steps, tmp_path):
    task, config = task_of(five_steps)
    cfg = solver(
        tmp_path, OPTIMIZING_METHOD="adamw_original", NO_DECAY="original", BASE_LR=config["lr"],
        BETAS=config["betas"], EPS=config["eps"], WEIGHT_DECAY=config["weight_decay"],
    )  # fmt: skip
    optimizer = build_optimizer(task, cfg)
    num_steps = len([k for k in five_steps.files if k.endswith("/pair")])
    for step in range(num_steps):
        found = group(five_steps, f"step{step}")
        lr = learning_rate(step, config["total_steps"], cfg.BASE_LR, config["warmup_steps"])
        assert lr == pytest.approx(found["lr"].item(), abs=1e-12)
        for parameters in optimizer.param_groups:
            parameters["lr"] = lr
        task.masker.mask = found["labels"] != -100
        scalars = task.training_step({"clips": found["pair"]}, torch.Generator())
        assert scalars["token_loss"].item() == pytest.approx(found["mlm_loss"].item(), abs=1e-5)
        assert scalars["contrast_loss"].item() == pytest.approx(found["nce_loss"].item(), abs=1e-5)
        optimizer.zero_grad()
        scalars["loss"].backward()
        if step == 0:
            gradients = {n: p.grad.clone() for n, p in task.named_parameters()}
        norm = nn.utils.clip_grad_norm_(task.parameters(), config["clip"])
        assert norm.item() == pytest.approx(found["grad_norm"].item(), abs=1e-4, rel=1e-5)
        optimizer.step()
    assert step == 4

    expected = group(five_steps, "grad")
    ours = with_original_names(task, gradients, config["layout"])
    assert_equal_entries(ours, expected, expected)
    expected = group(five_steps, "final")
    ours = with_original_names(task, task.state_dict(), config["layout"])
    # The true gradient of these is zero: what their run has is rounding noise, which Adam blows
    # up; the running mean follows the bias in front of it. All else must agree.
    noise = {key for key in expected if "key.bias" in key}
    noise |= {"cls_head.mlp.linear_0.bias", "cls_head.mlp.bn_0.running_mean"}
    assert len(noise) == 5
    assert_equal_entries(ours, expected, expected.keys() - noise)


def assert_equal_entries(ours, expected, keys):
    assert keys
    for key in keys:
        torch.testing.assert_close(ours[key], expected[key], atol=1e-5, rtol=0)


def test_groups_equal_the_authors_groups(five_steps):
    task, _ = task_of(five_steps)
    theirs = original_state_names(task, num_patterns=(1, 2))
    for found, name in zip(
        parameter_groups(task, 0.05, "original"), ("decay_names", "no_decay_names"), strict=True
    ):
        names = {n for ours in names_of(task, found["params"]) for n in theirs[ours]}
        assert names == set(json.loads(str(five_steps[name])))
