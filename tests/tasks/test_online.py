"""Tokens made in the training step, and pre-training of backbones that read pixels."""

import pytest
import torch
from torch import nn

from vimpac_ext.backbones import (
    PytorchVideoBackbone,
    TimmFrames,
    TimmSpaceTime,
    TimmTokens,
    VimpacTransformer,
)
from vimpac_ext.heads import MaskedTokenHead, ProjectionHead
from vimpac_ext.losses import InfoNCELoss, MaskedTokenLoss
from vimpac_ext.maskers import BlockMasker
from vimpac_ext.structures import SpecialTokens
from vimpac_ext.tasks import FinetuneTask, PretrainTask
from vimpac_ext.tasks.online import OnlineTokenizer

VOCAB = 4


class BrightnessTokenizer(nn.Module):
    """The token of an 8 x 8 patch is its mean brightness, in quarters."""

    vocab_size, stride, fingerprint = VOCAB, 8, "BrightnessTokenizer:0"

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def encode(self, frames):
        assert not frames.isnan().any()
        brightness = nn.functional.avg_pool2d(frames.mean(dim=1), 8)
        return (brightness * VOCAB).long().clamp(max=VOCAB - 1)


def patches(num_frames=2, side=32, num_clips=4, seed=0):
    """Clips of flat 8 x 8 patches, and their tokens."""
    generator = torch.Generator().manual_seed(seed)
    cells = side // 8
    tokens = torch.randint(VOCAB, (num_clips, num_frames, cells, cells), generator=generator)
    brightness = (tokens + 0.5) / VOCAB
    pixels = brightness.repeat_interleave(8, 2).repeat_interleave(8, 3)
    return pixels[:, None].expand(-1, 3, -1, -1, -1).clone(), tokens


def test_tokens_of_clips():
    clips, tokens = patches()
    clips[1, :, 1] = torch.nan
    tokens[1, 1] = SpecialTokens(VOCAB).pad
    online = OnlineTokenizer(BrightnessTokenizer(), SpecialTokens(VOCAB))
    assert torch.equal(online(clips), tokens)


def token_task(tokenizer):
    torch.manual_seed(0)
    backbone = VimpacTransformer((2, 4, 4), VOCAB, embed_dim=16, num_layers=1, num_heads=2)
    return PretrainTask(
        backbone,
        heads={"token": MaskedTokenHead(16, backbone.token_embedding)},
        losses={"token": MaskedTokenLoss()},
        vocab_size=VOCAB,
        masker=BlockMasker(num_blocks=2),
        tokenizer=tokenizer,
    ).eval()


def test_a_step_equals_one_with_stored_tokens():
    clips, tokens = patches()
    online, stored = token_task(BrightnessTokenizer()), token_task(None)
    assert (online.input_kind, stored.input_kind) == ("pixels", "tokens")
    assert online.state_dict().keys() == stored.state_dict().keys()
    generator = torch.Generator()
    losses = [
        task.training_step({"clips": batch.unflatten(0, (2, 2))}, generator.manual_seed(1))["loss"]
        for task, batch in ((online, clips), (stored, tokens))
    ]
    assert losses[0].item() == losses[1].item() > 0


def test_features_are_those_of_clips_in_which_nothing_is_hidden():
    clips, tokens = patches()
    online, stored = token_task(BrightnessTokenizer()), token_task(None)
    expected = stored.backbone(tokens)["cls"]
    for task, inputs in ((online, clips), (stored, tokens)):
        assert torch.equal(task.encode(inputs)["cls"], expected)
    clips[1, :, 1] = torch.nan
    task = pixel_task(Recorder())
    task.encode(clips)
    assert torch.equal(task.backbone.clip, clips.nan_to_num(0.5))


def pixel_task(backbone, masker=None, **options):
    heads = {
        "token": MaskedTokenHead(backbone.embed_dim, vocab_size=VOCAB),
        "contrast": ProjectionHead(backbone.embed_dim, hidden_dim=16, output_dim=8),
    }
    losses = {"token": MaskedTokenLoss(), "contrast": InfoNCELoss(weight=0.1)}
    return PretrainTask(
        backbone,
        heads,
        losses,
        vocab_size=VOCAB,
        masker=masker or BlockMasker(num_blocks=3),
        tokenizer=BrightnessTokenizer(),
        **options,
    )


class Recorder(nn.Module):
    """Keeps what it was given; its features are a function of nothing."""

    input_kind, embed_dim = "pixels", 8

    def forward(self, clip):
        self.clip = clip
        return {"cls": torch.randn(len(clip), 8), "features": torch.randn(len(clip), 1, 2, 2, 8)}


def test_frames_are_blank_where_tokens_are_masked():
    clips, _ = patches()
    clips[3, :, 1] = torch.nan
    mask = torch.zeros(4, 2, 4, 4, dtype=torch.bool)
    mask[:, 0, 1:3, 2] = True
    task = pixel_task(Recorder(), masker=lambda tokens, generator: mask)
    task.training_step({"clips": clips.unflatten(0, (2, 2)).transpose(0, 1)}, torch.Generator())
    expected = clips.clone()
    expected[:, :, 0, 8:24, 16:24] = 0.5
    expected[3, :, 1] = 0.5
    assert torch.equal(task.backbone.clip, expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PytorchVideoBackbone(
            (4, 32, 32),
            "mvit_base_16x4",
            options={"depth": 2, "embed_dim_mul": [[1, 2.0]], "atten_head_mul": [[1, 2.0]],
                     "pool_q_stride_size": [[1, 1, 2, 2]], "pool_kv_stride_adaptive": [1, 2, 2],
                     "patch_embed_dim": 32},
        ),
        lambda: TimmSpaceTime((4, 32, 32), "vit_tiny_patch16_224", options={"depth": 2}),
    ],
    ids=["mvit", "timm"],
)  # fmt: skip
def test_pixel_backbones_learn_to_predict_masked_tokens(make):
    """Four clips of one grey each: what is visible tells what is hidden."""
    torch.manual_seed(0)
    task = pixel_task(make()).train()
    greys = (torch.arange(4) + 0.5) / VOCAB
    clips = greys.view(4, 1, 1, 1, 1).expand(4, 3, 4, 32, 32)
    batch = {"clips": clips.unflatten(0, (2, 2))}
    optimizer = torch.optim.AdamW(task.parameters(), lr=2e-3)
    losses = []
    for step in range(30):
        scalars = task.training_step(batch, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        scalars["loss"].backward()
        optimizer.step()
        losses.append(scalars["token_loss"].item())
    assert sum(losses[-5:]) / 5 < 0.7 < 1.3 < losses[0]


def test_a_vision_transformer_on_tokens_learns():
    torch.manual_seed(0)
    backbone = TimmTokens((2, 4, 4), VOCAB, "vit_tiny_patch16_224", options={"depth": 2})
    task = PretrainTask(
        backbone,
        heads={"token": MaskedTokenHead(192, backbone.token_embedding)},
        losses={"token": MaskedTokenLoss()},
        vocab_size=VOCAB,
        masker=BlockMasker(num_blocks=3),
    ).train()
    tokens = torch.arange(4).view(4, 1, 1, 1).expand(4, 2, 4, 4)
    optimizer = torch.optim.AdamW(task.parameters(), lr=2e-3)
    losses = []
    for step in range(30):
        batch = {"clips": tokens.unflatten(0, (2, 2))}
        loss = task.training_step(batch, torch.Generator().manual_seed(step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.7 < 1.3 < losses[0]


def test_says_what_pixel_backbones_need():
    with pytest.raises(ValueError, match="set DATA.TOKENS online"):
        PretrainTask(Recorder(), {}, {}, vocab_size=VOCAB)
    with pytest.raises(ValueError, match="needs a backbone that reads tokens"):
        pixel_task(Recorder(), noise="token")
    without_map = TimmFrames((4, 32, 32), "resnet10t")
    without_map._places = lambda features: None  # as of models whose tokens lie on no grid
    clips, _ = patches(num_frames=4)
    batch = {"clips": clips.unflatten(0, (2, 2))}
    with pytest.raises(ValueError, match='gives no "features"'):
        pixel_task(without_map).training_step(batch, torch.Generator())


def test_a_classifier_of_frames_wants_no_tokenizer():
    backbone = TimmSpaceTime((2, 32, 32), "vit_tiny_patch16_224", options={"depth": 1})
    with pytest.raises(ValueError, match="TimmSpaceTime reads the frames: leave DATA"):
        FinetuneTask(backbone, {}, {}, tokenizer=BrightnessTokenizer(), vocab_size=VOCAB)
