"""Layer-wise and named learning rates, against a slow obvious implementation and timm."""

import json
import re

import pytest
import torch
from test_resume import lines, require_same_run, start
from tiny_project import make_tiny_project
from torch import nn

from vimpac_ext import compat
from vimpac_ext.backbones import HuggingFaceBackbone, PytorchVideoBackbone, VimpacTransformer
from vimpac_ext.backbones.timm import TimmFrames, TimmSpaceTime, TimmTokens
from vimpac_ext.config import ConfigError, load_config, validate
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.checkpoint import CheckpointError
from vimpac_ext.engine.optim import build_optimizer, parameter_groups
from vimpac_ext.engine.rate_scales import rate_scales
from vimpac_ext.heads import ClassificationHead
from vimpac_ext.tasks import FinetuneTask

DECAY = 0.6
VIT = {"depth": 3, "embed_dim": 24, "num_heads": 2}
HF = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}


def task_of(backbone):
    heads = {"classification": ClassificationHead(backbone.embed_dim, num_classes=3)}
    return FinetuneTask(backbone, heads, {})


def vimpac(norm="post"):
    return VimpacTransformer(
        (2, 2, 2), vocab_size=5, embed_dim=8, num_layers=3, num_heads=2, norm=norm
    )


def tiny_mvit():
    options = {
        "depth": 3,
        "num_heads": 1,
        "embed_dim_mul": [[1, 2.0]],
        "atten_head_mul": [[1, 2.0]],
        "pool_q_stride_size": [[1, 1, 2, 2]],
        "pool_kv_stride_adaptive": [1, 2, 2],
        "pool_kvq_kernel": [3, 3, 3],
        "patch_embed_dim": 16,
        "conv_patch_embed_kernel": [3, 7, 7],
    }
    return PytorchVideoBackbone((4, 32, 32), "mvit_base_16x4", options=options)


# What belongs to the embedding and where the number of a layer stands in a name; the rest is full.
CASES = {
    "vimpac": (vimpac, r"token_embedding|cls_token|position|input_norm", r"layers\.(\d+)", 3),
    "vimpac_pre": (lambda: vimpac("pre"), r"token_emb|cls_token|position", r"layers\.(\d+)", 3),
    "timm_tokens": (
        lambda: TimmTokens((2, 2, 2), 5, "vit_tiny_patch16_224", options=VIT),
        r"token_embedding|cls_token|position",
        r"layers\.(\d+)",
        3,
    ),
    "mvit": (tiny_mvit, r"model\.(patch_embed|cls_positional)", r"model\.blocks\.(\d+)", 3),
    **{
        kind: (
            lambda kind=kind, more=more: HuggingFaceBackbone(
                (2, 32, 32), kind, options={**HF, **more}
            ),
            r"model\.embeddings",
            r"model\.(?:encoder\.)?layers?\.(\d+)",
            2,
        )
        for kind, more in {
            "timesformer": {"intermediate_size": 8},
            "vivit": {"intermediate_size": 8},
            "videomae": {"intermediate_size": 8},
            "vjepa2": {},
        }.items()
    },
}


@pytest.mark.parametrize("case", CASES)
def test_layer_decay_equals_the_obvious_implementation(case):
    make, embedding, layers, count = CASES[case]
    task = task_of(make())
    found = rate_scales(task, DECAY)
    numbers = set()
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            assert name not in found
            continue
        layer = re.match(rf"backbone\.{layers}", name)
        if re.match(rf"backbone\.({embedding})", name):
            number = 0
        elif layer:
            number = int(layer[1]) + 1
        else:
            rest = r"heads|backbone\.(output_norm|norm|model\.(layernorm|norm_embed))"
            assert re.match(rest, name)
            number = count + 1
        numbers.add(number)
        assert found[name] == pytest.approx(DECAY ** (count + 1 - number)), name
    assert numbers == set(range(count + 2))


def timm_scales(model, **options):
    compat.install()
    import timm
    from timm.optim import param_groups_layer_decay

    torch.manual_seed(0)
    network = timm.create_model(model, **options)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = param_groups_layer_decay(network, 0.05, layer_decay=DECAY)
    return {
        names[id(p)]: (group["lr_scale"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }


@pytest.mark.parametrize(
    ("model", "options", "make", "num_layers"),
    [
        ("vit_tiny_patch16_224", {**VIT, "img_size": 32}, TimmFrames, 3),
        ("vit_tiny_patch16_224", {**VIT, "img_size": 32}, TimmSpaceTime, 3),
        ("resnet10t", {}, TimmFrames, 4),
        ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (4, 4, 4, 4)}, TimmFrames, 5),
    ],
)
def test_timm_models_have_the_rates_and_decays_of_timm(model, options, make, num_layers):
    backbone = make((2, 32, 32), model, options=options)
    assert backbone.num_layers == num_layers
    task = task_of(backbone)
    groups = parameter_groups(task, 0.05, scales=rate_scales(task, DECAY))
    found = {
        id(p): (group["lr_scale"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }
    expected = timm_scales(model, **options)
    compared = 0
    for name, parameter in task.named_parameters():
        inner = name.removeprefix("backbone.model.")
        if inner in expected:
            assert found[id(parameter)] == pytest.approx(expected[inner]), name
            compared += 1
    # All but timm's classifier, in whose place our head has the full rate, as it has in timm.
    assert compared == len(expected) - 2
    assert found[id(task.heads["classification"].linear.weight)][0] == 1.0
    if make is TimmSpaceTime:
        scales = rate_scales(task, DECAY)
        assert scales["backbone.time_position"] == pytest.approx(DECAY**4)
        assert scales["backbone.time_layers.1.norm.weight"] == pytest.approx(DECAY**2)


def test_patterns_multiply_with_each_other_and_the_decay():
    task = task_of(vimpac())
    patterns = {"heads.*": 10.0, "*.bias": 2.0}
    plain, found = rate_scales(task, DECAY), rate_scales(task, DECAY, patterns)
    for name, scale in found.items():
        factor = 10 ** name.startswith("heads.") * 2 ** name.endswith(".bias")
        assert scale == pytest.approx(plain[name] * factor)
    with pytest.raises(ConfigError, match=r"'head\.\*'; there are \d+, such as heads\."):
        rate_scales(task, patterns={"head.*": 2.0})
    task.heads.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trained parameter has a name like"):
        rate_scales(task, patterns=patterns)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_dim, self.input_kind = 4, "pixels"
        self.layer = nn.Linear(3, 4)


@pytest.mark.parametrize(
    "backbone", [Plain, lambda: PytorchVideoBackbone((4, 32, 32), "r2plus1d_r50", global_pool=True)]
)
def test_a_backbone_without_numbered_layers_says_so(backbone):
    task = task_of(backbone())
    with pytest.raises(ConfigError, match=r"LAYER_DECAY is 0\.6, .* are not numbered"):
        rate_scales(task, DECAY)
    assert set(rate_scales(task).values()) == {1.0}


@pytest.mark.parametrize("no_decay", ["vectors", "original"])
def test_one_step_moves_each_parameter_by_its_own_rate(tmp_path, no_decay):
    """Adam's first step is its rate; weight decay, where there is one, shrinks by rate times it."""
    path = tmp_path / "solver.yaml"
    values = {"BASE_LR": 0.1, "NO_DECAY": no_decay, "LAYER_DECAY": DECAY, "WEIGHT_DECAY": 0.05}
    path.write_text(json.dumps({"SOLVER": {**values, "LR_SCALES": {"heads.*": 3.0}, "EPS": 1e-30}}))
    task = task_of(vimpac())
    optimizer = build_optimizer(task, load_config(path).cfg.SOLVER)
    for group in optimizer.param_groups:  # as the trainer does
        group["lr"] = 0.1 * group["lr_scale"]
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    for parameter in task.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scales = rate_scales(task, DECAY, {"heads.*": 3.0})
    num_decayed = 0
    for name, parameter in task.named_parameters():
        rate = 0.1 * scales[name]
        decays = parameter.ndim > 1
        if no_decay == "original":
            decays = name == "backbone.cls_token" or decays
        num_decayed += decays
        expected = before[name] * (1 - rate * 0.05 * decays) - rate
        torch.testing.assert_close(parameter.detach(), expected, msg=name)
    assert 0 < num_decayed < len(scales)


def test_patterns_in_configurations(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {LR_SCALES: {heads.*: 10, '*.bias': 2.0}}")
    path = tmp_path / "a.yaml"
    path.write_text("_BASE_: base.yaml\nSOLVER: {LR_SCALES: {'*.bias': null, backbone.x: 1e-1}}")
    words = ["SOLVER.LR_SCALES.backbone.layers.0.*", "0.5"]
    expected = {"heads.*": 10.0, "backbone.x": 0.1, "backbone.layers.0.*": 0.5}
    loaded = load_config(path, words)
    assert dict(loaded.cfg.SOLVER.LR_SCALES) == expected
    again = tmp_path / "again.yaml"
    again.write_text(loaded.cfg.dump())
    assert load_config(again).cfg == loaded.cfg
    for wrong, message in (
        (["SOLVER.LR_SCALES.x", "0"], "positive factors"),
        (["SOLVER.LR_SCALES.x", "much"], "must be float"),
        (["SOLVER.LAYER_DECAY", "1.1"], "at most 1"),
        (["SOLVER.LAYER_DECAY", "0.0"], "positive"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(load_config(path, wrong))


RATES = ["SOLVER.LAYER_DECAY", "0.5", "SOLVER.LR_SCALES.heads.*", "2.0", "SOLVER.MAX_EPOCH", "6"]


@pytest.mark.slow
def test_a_killed_run_keeps_its_rates(tmp_path):
    config = make_tiny_project(tmp_path) / "pretrain.yaml"
    run(prepare(config, [*RATES, "OUTPUT_DIR", str(tmp_path / "whole")]))
    broken = [*RATES, "OUTPUT_DIR", str(tmp_path / "broken")]
    start(config, broken, victim=0, death=9, moment=5)
    start(config, broken)
    require_same_run(tmp_path / "broken", tmp_path / "whole")
    run(prepare(config, ["SOLVER.MAX_EPOCH", "6", "OUTPUT_DIR", str(tmp_path / "other")]))
    assert lines(tmp_path / "other")[5]["loss"] != lines(tmp_path / "whole")[5]["loss"]


def test_a_resumed_run_takes_new_numbers_and_refuses_new_groups(tmp_path):
    config = make_tiny_project(tmp_path) / "pretrain.yaml"
    run(prepare(config, ["SOLVER.MAX_EPOCH", "1", "SOLVER.LR_SCALES.heads.*", "2.0"]))
    run(prepare(config, ["SOLVER.LR_SCALES.heads.*", "3.0", "SOLVER.WEIGHT_DECAY", "0.5"]))
    checkpoint = torch.load(
        tmp_path / "pretrain/checkpoints/checkpoint_epoch_00002.pyth", weights_only=True
    )
    groups = checkpoint["optimizer_state"]["param_groups"]
    assert {group["lr_scale"] for group in groups} == {1.0, 3.0}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}
    with pytest.raises(CheckpointError, match="other groups of parameters than SOLVER.NO_DECAY"):
        run(prepare(config, ["SOLVER.MAX_EPOCH", "3", "SOLVER.LAYER_DECAY", "0.9"]))
