"""Wrapped backbones in parts: their layers are the right ones, and updates those of one process."""

import importlib.util

import pytest
import torch
import torch.distributed as dist
from processes import in_processes
from torch import nn

from vimpac_ext.backbones import (
    HuggingFaceBackbone,
    PytorchVideoBackbone,
    TimmFrames,
    TimmSpaceTime,
    TimmTokens,
    VimpacTransformer,
)
from vimpac_ext.engine.parallel import Replica
from vimpac_ext.engine.sharding import clip_gradients, layers_of, shard, whole
from vimpac_ext.heads import ClassificationHead
from vimpac_ext.losses import CrossEntropyLoss
from vimpac_ext.tasks import FinetuneTask

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs transformers"
)
SIZE = (4, 32, 32)
MVIT = {
    "depth": 2,
    "patch_embed_dim": 16,
    "embed_dim_mul": [[1, 2.0]],
    "atten_head_mul": [[1, 2.0]],
    "pool_q_stride_size": [[1, 1, 2, 2]],
    "pool_kv_stride_adaptive": [1, 2, 2],
    "head_dropout_rate": 0.0,
}
VIT = {"depth": 2, "embed_dim": 16, "num_heads": 2}
HF = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def space_time(attention):
    return TimmSpaceTime(SIZE, "vit_tiny_patch16_224", attention, options=VIT)


def hugging_face(model_type):
    options = {k: v for k, v in HF.items() if model_type != "vjepa2" or k != "intermediate_size"}
    return HuggingFaceBackbone(SIZE, model_type, options=options)


def frames(model, options):
    return TimmFrames(SIZE, model, options=options)


BACKBONES = {
    "divided": lambda: space_time("divided"),
    "joint": lambda: space_time("joint"),
    "mvit": lambda: PytorchVideoBackbone(SIZE, "mvit_base_16x4", options=MVIT),
    "frames": lambda: frames("vit_tiny_patch16_224", VIT),
    "convnext": lambda: frames("convnext_atto", {"depths": [1] * 4, "dims": [4, 8, 8, 8]}),
    "efficientnet": lambda: frames("tf_mobilenetv3_small_minimal_100", {}),
    "slow": lambda: PytorchVideoBackbone(
        SIZE, "slow_r50", global_pool=True, options={"dropout_rate": 0.0}
    ),
    "slowfast": lambda: PytorchVideoBackbone((8, 64, 64), "slowfast_r50", global_pool=True),
    "x3d": lambda: PytorchVideoBackbone(
        SIZE, "x3d_xs", global_pool=True, options={"dropout_rate": 0.0}
    ),
    "timesformer": lambda: hugging_face("timesformer"),
    "vivit": lambda: hugging_face("vivit"),
    "videomae": lambda: hugging_face("videomae"),
    "vjepa2": lambda: hugging_face("vjepa2"),
}
OF_TRANSFORMERS = ("timesformer", "vivit", "videomae", "vjepa2")
UPDATED = tuple(name for name in BACKBONES if name != "slowfast")  # large, and like "slow"
NUMBERED = ("divided", "joint", "mvit", *OF_TRANSFORMERS)


def marked(names, slow=()):
    marks = {name: [needs_transformers] for name in OF_TRANSFORMERS}
    for name in slow:
        marks.setdefault(name, []).append(pytest.mark.slow)
    return [pytest.param(name, marks=marks.get(name, ())) for name in names]


def task_with(name):
    torch.manual_seed(0)
    backbone = BACKBONES[name]()
    head = ClassificationHead(backbone.embed_dim, 3)
    nn.init.normal_(head.linear.weight, std=0.5)  # else the backbone's first gradients are zero
    task = FinetuneTask(backbone, {"classes": head}, {"classes": CrossEntropyLoss()})
    norms = [m for m in task.modules() if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d))]
    if norms:  # their statistics are each process's own, with all weights as with parts
        for norm in norms:
            norm.momentum = 1.0
        backbone(torch.rand(4, 3, *backbone.clip_size))
        for norm in norms:
            norm.eval()
    return task


def two_updates(name, precision="fp32", checkpointing=False, rank=0, world=1):
    """Losses and weights after two updates of two micro-batches of four clips."""
    task = task_with(name)
    optimizer = torch.optim.SGD(task.parameters(), 0.02, momentum=0.9)
    if world > 1:
        task.backbone.activation_checkpointing = checkpointing
        shard(task, optimizer, precision, torch.device("cpu"))
    replica = Replica(task)
    generator = torch.Generator().manual_seed(1)
    own = slice(rank * 4 // world, (rank + 1) * 4 // world)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        for step in range(2):
            clips = torch.rand(4, 1, 3, *task.backbone.clip_size, generator=generator)
            labels = torch.randint(3, (4,), generator=generator)
            with replica.exchange(step == 1):
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    batch = {"clips": clips[own], "label": labels[own]}
                    loss = replica(batch, None)["loss"]
                (loss / 2).backward()
            losses.append(loss.detach())
        clip_gradients(task.parameters(), 0.5)
        optimizer.step()
    return torch.stack(losses), whole(task).state_dict()


def my_two_updates(*arguments):
    return two_updates(*arguments, rank=dist.get_rank(), world=dist.get_world_size())


QUICK = ("divided", "mvit", "vivit")


@pytest.mark.parametrize("name", marked(UPDATED, slow={*UPDATED} - {*QUICK}))
def test_updates_are_those_of_one_process(name):
    before = task_with(name).state_dict()
    losses, weights = two_updates(name)
    (main, found), (other, _) = in_processes(2, my_two_updates, name, "fp32", name == "divided")
    torch.testing.assert_close((main + other) / 2, losses, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(losses).all()
    assert found.keys() == weights.keys() == before.keys()
    for key, value in weights.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=key)
    trained = [key for key, _ in task_with(name).named_parameters()]
    change = sum(float((weights[key] - before[key]).abs().sum()) for key in trained)
    assert change > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", marked(UPDATED))
def test_bfloat16_layers_are_near_to_float32(name):
    losses, _ = two_updates(name)
    (main, weights), (other, _) = in_processes(2, my_two_updates, name, "bf16")
    torch.testing.assert_close((main + other) / 2, losses, rtol=0.1, atol=0.1)
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {
        torch.float32
    }


def seen_weights(name):
    """The shapes of each layer's weights while another one computes, and while it does itself."""
    task = task_with(name)
    shapes = [[p.numel() for p in layer.parameters()] for layer in layers_of(task)]
    optimizer = torch.optim.SGD(task.parameters(), 0.1)
    shard(task, optimizer, "fp32", torch.device("cpu"))
    layers = list(layers_of(task))
    whole_ones = {}

    def look(module, arguments):
        whole_ones[layers.index(module)] = [
            [not hasattr(p, "full_tensor") for p in layer.parameters()] for layer in layers
        ]

    for layer in layers:
        layer.register_forward_pre_hook(look)
    clips = torch.rand(1, 3, *task.backbone.clip_size)
    task.training_step({"clips": clips[None], "label": torch.tensor([0])}, None)
    kept = [[p.to_local().numel() for p in layer.parameters()] for layer in layers]
    return shapes, kept, whole_ones


@pytest.mark.parametrize("name", marked(["divided"]))
def test_a_layer_is_gathered_while_it_computes_and_not_before(name):
    results = in_processes(2, seen_weights, name)
    shapes = results[0][0]
    assert len(shapes) == 4  # along time, within frames, twice
    for index, numbers in enumerate(shapes):
        kept = [sum(kept[index]) for _, kept, _ in results]
        assert sum(kept) == sum(numbers)
    for _, _, whole_ones in results:
        assert sorted(whole_ones) == [0, 1, 2, 3]
        for index, of_layers in whole_ones.items():
            assert all(of_layers[index])
            assert not any(flag for flags in of_layers[index + 1 :] for flag in flags)


def own_layers(backbone):
    task = nn.Module()
    task.backbone = backbone
    return list(layers_of(task))


@pytest.mark.parametrize("name", marked(NUMBERED))
def test_layers_hold_every_parameter_between_the_embedding_and_the_end(name):
    backbone = BACKBONES[name]()
    layers = own_layers(backbone)
    covered = [id(p) for layer in layers for p in layer.parameters()]
    assert len(covered) == len(set(covered))
    names = {n: id(p) for n, p in backbone.named_parameters()}
    # timm counts the last norm among the last layer.
    between = {
        n for n in names if 1 <= backbone.layer_of(n) <= 2 and not n.startswith("model.norm.")
    }
    assert {names[n] for n in between} == set(covered)


@pytest.mark.parametrize("name", marked(BACKBONES, slow=["slow", "slowfast"]))
def test_layers_are_called_in_their_order_and_add_no_names(name):
    backbone = BACKBONES[name]()
    layers = own_layers(backbone)
    assert layers
    called = []
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda module, arguments, index=index: called.append(index))
    backbone(torch.rand(1, 3, *backbone.clip_size))
    assert called == list(range(len(layers)))
    inside = {id(module) for module in backbone.modules()}
    assert all(id(layer) in inside for layer in layers)
    assert not any(key.startswith("layers.") for key in backbone.state_dict())


def test_token_backbones_have_layers_too():
    grid = (2, 2, 2)
    for backbone in (
        VimpacTransformer(grid, 8, embed_dim=16, num_heads=2, num_layers=3),
        TimmTokens(grid, 8, "vit_tiny_patch16_224", options={**VIT, "depth": 3}),
    ):
        assert len(own_layers(backbone)) == 3


def test_a_resnet_of_timm_has_none_in_one_sequence():
    assert own_layers(frames("resnet10t", {})) == []
