"""timm's image models on videos, against plain loops over frames, and published sizes."""

import re

import pytest
import torch

from vimpac_ext.backbones import TimmFrames, TimmSpaceTime, TimmTokens
from vimpac_ext.evaluation import multiply_adds, parameter_count

SIZE = (3, 32, 32)
VIT = "vit_tiny_patch16_224"


def rich(backbone):
    """Weights that are nowhere zero, so that every path counts."""
    torch.manual_seed(0)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return backbone.eval()


def frames_of(backbone, clip):
    return [backbone.normalized(clip)[:, :, t] for t in range(clip.shape[2])]


@pytest.mark.parametrize("model", ["resnet18", VIT])
def test_mean_of_frames(model):
    backbone = rich(TimmFrames(SIZE, model))
    clip = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        vectors = [
            backbone.model.forward_head(backbone.model.forward_features(frame), pre_logits=True)
            for frame in frames_of(backbone, clip)
        ]
        torch.testing.assert_close(backbone(clip)["cls"], torch.stack(vectors).mean(dim=0))


def test_normalises_as_the_image_model_was_trained():
    imagenet = TimmFrames(SIZE, "resnet18")
    assert imagenet.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    half = TimmFrames(SIZE, VIT)
    assert half.std.flatten().tolist() == pytest.approx([0.5, 0.5, 0.5])


@pytest.mark.parametrize("model", ["resnet10t", VIT])
def test_features_of_frames_stand_at_their_frame_and_place(model):
    """Changing the bottom left of the last frame changes its features there the most."""
    backbone = TimmFrames((3, 64, 64), model, options={"depth": 1} if model == VIT else None)
    rich(backbone)
    clip = torch.rand(1, 3, 3, 64, 64)
    changed = clip.clone()
    changed[:, :, 2, 32:, :32] += 1.0
    with torch.no_grad():
        features = backbone(clip)["features"]
        change = (backbone(changed)["features"] - features).norm(dim=-1)[0]
    assert features.shape == (1, 3, *change.shape[1:], backbone.embed_dim)
    assert torch.equal(change[:2], torch.zeros_like(change[:2]))
    rows, columns = change.shape[1] // 2, change.shape[2] // 2
    inside = change[2, rows:, :columns].mean()
    assert inside > change[2, :rows, columns:].mean()


def test_features_of_frames_are_the_image_models():
    """A frame's own map."""
    backbone = rich(TimmFrames(SIZE, "resnet10t"))
    clip = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        outputs = backbone(clip)
        # The average over places and frames is what the model classifies from.
        torch.testing.assert_close(outputs["features"].mean(dim=(1, 2, 3)), outputs["cls"])
        frame = backbone.model.forward_features(frames_of(backbone, clip)[1])
        torch.testing.assert_close(outputs["features"][:, 1], frame.permute(0, 2, 3, 1))


def test_a_map_may_be_narrower_than_what_is_made_of_its_average():
    backbone = rich(TimmFrames((2, 64, 64), "mobilenetv3_small_050"))
    assert (backbone.embed_dim, backbone.feature_dim) == (1024, 288)
    clip = torch.rand(1, 3, 2, 64, 64)
    with torch.no_grad():
        outputs = backbone(clip)
        assert outputs["features"].shape == (1, 2, 2, 2, 288)
        averages = outputs["features"].mean(dim=(2, 3)).flatten(0, 1)[..., None, None]
        network = backbone.model
        vectors = network.act2(network.conv_head(averages)).flatten(1)
    torch.testing.assert_close(outputs["cls"], vectors.mean(dim=0, keepdim=True))


def test_tokens_that_lie_nowhere_are_no_map():
    backbone = TimmFrames((1, 224, 224), "hiera_tiny_224")
    with torch.no_grad():
        assert backbone(torch.rand(1, 3, 1, 224, 224)).keys() == {"cls"}


def test_only_attention_pooling_sees_the_order_of_frames():
    clip = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        mean = rich(TimmFrames(SIZE, VIT))
        torch.testing.assert_close(mean(clip)["cls"], mean(clip.flip(2))["cls"])
        attention = rich(TimmFrames(SIZE, VIT, pooling="attention", num_heads=4))
        change = (attention(clip)["cls"] - attention(clip.flip(2))["cls"]).abs().max()
    assert change > 1e-3


def test_pretrained_classifier_of_frames(tmp_path):
    import timm

    torch.manual_seed(0)
    network = timm.create_model("resnet18", num_classes=1000).eval()
    path = tmp_path / "resnet18.pth"
    torch.save(network.state_dict(), path)
    backbone = TimmFrames(SIZE, "resnet18", weights=str(path)).eval()
    clip = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        logits = torch.stack([network(frame) for frame in frames_of(backbone, clip)]).mean(dim=0)
        ours = torch.nn.functional.linear(backbone(clip)["cls"], **backbone.classifier)
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["resnet10t", VIT])
def test_weights_of_another_class_count(model, tmp_path):
    import timm

    network = timm.create_model(model, num_classes=12)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = TimmFrames(SIZE, model, weights=str(tmp_path / "weights.pth"))
    assert torch.equal(backbone.classifier["weight"], network.get_classifier().weight)


def test_position_table_of_another_size_is_resampled(tmp_path):
    import timm

    network = timm.create_model(VIT, img_size=64)
    path = tmp_path / "vit.pth"
    torch.save(network.state_dict(), path)
    backbone = TimmSpaceTime(SIZE, VIT, weights=str(path))
    assert backbone.model.pos_embed.shape == (1, 1 + 2 * 2, 192)
    torch.testing.assert_close(backbone.model.blocks[0].attn.qkv.weight,
                               network.blocks[0].attn.qkv.weight)  # fmt: skip


def attention_of(attn, x):
    """Plain multi-head attention over (N, D) with a timm attention's weights."""
    num_heads = attn.num_heads
    q, k, v = attn.qkv(x).chunk(3, dim=-1)
    heads = []
    for qh, kh, vh in zip(*(t.chunk(num_heads, dim=-1) for t in (q, k, v)), strict=True):
        weights = (qh @ kh.T / qh.shape[-1] ** 0.5).softmax(dim=-1)
        heads.append(weights @ vh)
    return attn.proj(torch.cat(heads, dim=-1))


def embedded(backbone, clip):
    """[CLS] (D) and patches (T, N, D) of one clip, with their positions."""
    network = backbone.model
    patches = torch.stack([network.patch_embed(f)[0] for f in frames_of(backbone, clip)])
    patches = patches + network.pos_embed[0, 1:] + backbone.time_position[0]
    return network.cls_token[0, 0] + network.pos_embed[0, 0], patches


def test_divided_attention_equals_loops():
    backbone = rich(TimmSpaceTime(SIZE, VIT, options={"depth": 2}))
    clip = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        cls, patches = embedded(backbone, clip)
        for block, time in zip(backbone.model.blocks, backbone.time_layers, strict=True):
            for place in range(patches.shape[1]):
                change = attention_of(time.attn, time.norm(patches[:, place]))
                patches[:, place] += time.output(change)
            cls_changes = []
            for frame in range(patches.shape[0]):
                x = torch.cat([cls[None], patches[frame]])
                change = attention_of(block.attn, block.norm1(x))
                cls_changes.append(change[0])
                patches[frame] += change[1:]
            cls = cls + torch.stack(cls_changes).mean(dim=0)
            cls = cls + block.mlp(block.norm2(cls))
            patches = patches + block.mlp(block.norm2(patches))
        outputs = backbone(clip)
        torch.testing.assert_close(outputs["cls"][0], backbone.model.norm(cls))
        expected = backbone.model.norm(patches).unflatten(1, (2, 2))
        torch.testing.assert_close(outputs["features"][0], expected)


def test_joint_attention_equals_loops():
    backbone = rich(TimmSpaceTime(SIZE, VIT, attention="joint", options={"depth": 2}))
    clip = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        cls, patches = embedded(backbone, clip)
        x = torch.cat([cls[None], patches.flatten(0, 1)])
        for block in backbone.model.blocks:
            x = x + attention_of(block.attn, block.norm1(x))
            x = x + block.mlp(block.norm2(x))
        torch.testing.assert_close(backbone(clip)["cls"][0], backbone.model.norm(x)[0])


def test_time_attention_starts_switched_off():
    """A new divided model is the image model on every frame, but for the averaged [CLS]."""
    import timm

    torch.manual_seed(0)
    backbone = TimmSpaceTime((1, 32, 32), VIT).eval()
    image_model = timm.create_model(VIT, img_size=32, num_classes=0).eval()
    image_model.load_state_dict(backbone.model.state_dict())
    clip = torch.rand(2, 3, 1, 32, 32)
    with torch.no_grad():
        frame = backbone.normalized(clip)[:, :, 0]
        torch.testing.assert_close(backbone(clip)["cls"], image_model(frame))


def test_activation_checkpointing_changes_no_gradient():
    backbone = rich(TimmSpaceTime(SIZE, VIT, options={"depth": 2})).train()
    clip = torch.rand(1, 3, *SIZE)
    gradients = []
    for switched_on in (False, True):
        backbone.activation_checkpointing = switched_on
        backbone.zero_grad()
        backbone(clip)["cls"].square().sum().backward()
        gradients.append(backbone.model.blocks[0].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_timesformer_has_its_published_size():
    """TimeSformer-B (arXiv 2102.05095, Table 3): 121.4 M parameters with 400 classes."""
    backbone = TimmSpaceTime((8, 224, 224), "vit_base_patch16_224")
    assert (parameter_count(backbone) + 400 * 769) / 1e6 == pytest.approx(121.4, abs=0.2)


@pytest.mark.parametrize(
    ("model", "millions", "billions"),
    [  # of one image, with 1000 classes: torchvision's tables of its weights
        ("resnet50", 25.557, 4.089),
        pytest.param("vit_base_patch16_224", 86.568, 17.564, marks=pytest.mark.slow),
    ],
)
def test_a_frame_costs_what_is_published_of_an_image(model, millions, billions):
    backbone = TimmFrames((2, 224, 224), model)
    classifier = 1000 * (backbone.embed_dim + 1)
    assert (parameter_count(backbone) + classifier) / 1e6 == pytest.approx(millions, abs=0.001)
    cost = multiply_adds(backbone, torch.zeros(1, 3, 2, 224, 224))
    assert cost / 1e9 == pytest.approx(2 * billions, rel=0.01)


@pytest.mark.slow
def test_timesformer_has_its_published_cost():
    """0.59 * 10^12 for 3 views (Table 3): 196 * 10^9 a view."""
    backbone = TimmSpaceTime((8, 224, 224), "vit_base_patch16_224")
    cost = multiply_adds(backbone, torch.zeros(1, 3, 8, 224, 224))
    assert cost / 1e9 == pytest.approx(196.7, rel=0.01)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TimmFrames(SIZE, "resnt50"), "timm has no model 'resnt50'; similar: resnet50,"),
        (
            lambda: TimmFrames(SIZE, VIT, options={"depht": 3}),
            "timm's vit_tiny_patch16_224 does not take the options {'depht': 3}",
        ),
        (lambda: TimmFrames(SIZE, VIT, pooling="max"), "not one of mean, attention"),
        (lambda: TimmFrames((3, 33, 33), VIT), "cannot be cut into patches of 16 x 16"),
        (lambda: TimmFrames((3, 36, 36), "efficientvit_m0"), "into patches of 16 x 16"),
        (lambda: TimmFrames((3, 32, 48), VIT), "square frames, found 32 x 48"),
        (lambda: TimmSpaceTime(SIZE, "resnet18"), "'resnet18' is a ResNet"),
        (
            lambda: TimmSpaceTime(SIZE, "vit_base_patch16_rpn_224", options={"depth": 1}),
            "'vit_base_patch16_rpn_224' are ResPostBlock: set attention to joint",
        ),
        (
            lambda: TimmSpaceTime(SIZE, VIT, options={"patch_drop_rate": 0.5}),
            "leave out the option patch_drop_rate",
        ),
        (lambda: TimmSpaceTime(SIZE, VIT, attention="axial"), "not one of joint, divided"),
        (lambda: TimmSpaceTime(SIZE, VIT)(torch.rand(1, 3, 4, 32, 32)), "3 frames, found 4"),
        (lambda: TimmFrames(SIZE, "resnet18")(torch.rand(1, 4, 3, 32, 32)), "(B, 3, T, H, W)"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def test_tokens_attend_to_all_but_padding():
    backbone = rich(TimmTokens((2, 2, 2), 10, VIT, options={"depth": 2}))
    clip = torch.randint(10, (1, 2, 2, 2))
    clip[0, 1] = 11  # [PAD] is V + 1
    with torch.no_grad():
        embedded = backbone.token_embedding(clip[0]) + backbone.position[0]
        x = torch.cat([backbone.cls_token[0], embedded.flatten(0, 2)])
        for layer in backbone.layers:
            # Visible are [CLS] and the first frame.
            normed = layer.norm1(x)
            change = [masked_attention(layer.attn, query, normed[:5]) for query in normed]
            x = x + torch.stack(change)
            x = x + layer.mlp(layer.norm2(x))
        outputs = backbone(clip)
        torch.testing.assert_close(outputs["cls"][0], backbone.norm(x)[0])
        expected = backbone.norm(x)[1:].view(2, 2, 2, -1)
        torch.testing.assert_close(outputs["features"][0], expected)


def masked_attention(attn, query, keys):
    """One query over some keys, with a timm attention's weights."""
    q = attn.qkv(query).chunk(3)[0]
    _, k, v = attn.qkv(keys).chunk(3, dim=-1)
    heads = []
    for qh, kh, vh in zip(*(t.chunk(attn.num_heads, dim=-1) for t in (q, k, v)), strict=True):
        heads.append((qh @ kh.T / qh.shape[-1] ** 0.5).softmax(dim=-1) @ vh)
    return attn.proj(torch.cat(heads))
