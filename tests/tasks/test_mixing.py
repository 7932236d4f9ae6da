"""MixUp and CutMix of clips and their labels."""

import logging

import pytest
import torch

from vimpac_ext.heads import ClassificationHead
from vimpac_ext.losses import CrossEntropyLoss
from vimpac_ext.tasks import FinetuneTask
from vimpac_ext.tasks.mixing import ClipMixer


def clips():
    """Clip i is filled with i."""
    return torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 3, 2, 8, 8).clone()


def test_mixup_mixes_clips_as_labels():
    torch.manual_seed(0)
    mixed, shares = ClipMixer(4, mixup=0.8, cutmix=0.0)(clips(), torch.arange(4))
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(4))
    # Clip i holds i, so a mixed clip holds the mean of its labels' numbers.
    means = shares @ torch.arange(4.0)
    torch.testing.assert_close(mixed, means.view(4, 1, 1, 1, 1).expand_as(mixed))
    assert 0 < shares.max() < 1


def test_cutmix_shares_are_those_of_the_area_in_every_frame():
    torch.manual_seed(1)
    for _ in range(10):
        mixed, shares = ClipMixer(4, mixup=0.0, cutmix=1.0)(clips(), torch.arange(4))
        for i in range(4):
            own = (mixed[i] == i).float().mean(dim=(0, 2, 3))  # in each frame
            torch.testing.assert_close(own, shares[i, i].expand(2))
        assert set(mixed.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}


class Pixels(torch.nn.Module):
    input_kind, embed_dim = "pixels", 2

    def forward(self, clip):
        return {"cls": clip.mean(dim=(2, 3, 4))[:, :2]}


def task(backbone, **options):
    heads = {"classification": ClassificationHead(2, 4)}
    torch.nn.init.normal_(heads["classification"].linear.weight)
    losses = {"classification": CrossEntropyLoss()}
    return FinetuneTask(backbone, heads, losses, num_classes=4, **options)


def test_the_loss_is_that_of_the_mixed_labels():
    torch.manual_seed(0)
    tuned = task(Pixels(), mixup=0.8)
    batch = {"clips": clips()[:, None], "label": torch.arange(4)}
    torch.manual_seed(5)
    loss = tuned.training_step(batch, torch.Generator())["loss"]
    torch.manual_seed(5)
    mixed, shares = ClipMixer(4, 0.8, 0.0)(clips(), torch.arange(4))
    logits = tuned.heads["classification"](tuned.backbone(mixed))["class_logits"]
    expected = -(shares * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    torch.testing.assert_close(loss, expected)


class Recorder(torch.nn.Module):
    """A loss that remembers the labels."""

    weight = 1.0

    def forward(self, outputs, targets):
        self.labels = targets["labels"]
        return outputs["class_logits"].sum() * 0


class NearestLabel(torch.nn.Module):
    """Clips filled with a label -> scores of the four labels, the nearest one best."""

    input_kind, embed_dim = "pixels", 4

    def forward(self, clip):
        self.clips = clip
        means = clip.mean(dim=(1, 2, 3, 4))
        return {"cls": -((means[:, None] - torch.arange(4.0)) ** 2)}


def step_of_several_clips(clips_per_video, labels, **options):
    """A training step on clips that are filled with their video's label."""
    head = ClassificationHead(4, 4)
    torch.nn.init.eye_(head.linear.weight)
    heads, losses = {"classification": head}, {"classification": Recorder()}
    task = FinetuneTask(NearestLabel(), heads, losses, num_classes=4, **options).train()
    filled = labels.float().view(-1, 1, 1, 1, 1, 1).expand(-1, clips_per_video, 3, 2, 8, 8)
    batch = {"clips": filled.clone(), "label": labels}
    scalars = task.training_step(batch, torch.Generator())
    return task.backbone.clips, task.losses["classification"].labels, scalars


@pytest.mark.parametrize("clips_per_video", [1, 2, 4])
@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_several_clips_of_a_video_are_mixed_with_those_of_others(clips_per_video, options):
    torch.manual_seed(3)
    labels = torch.tensor([2, 0, 3, 1])
    mixed, shares, _ = step_of_several_clips(clips_per_video, labels, **options)
    assert mixed.shape == (4 * clips_per_video, 3, 2, 8, 8)
    assert ((shares > 0).sum(dim=1) == 2).all()  # two videos, each with a class of its own
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3, 4)), shares @ torch.arange(4.0))


def test_the_accuracy_is_that_of_each_clip_s_own_label():
    labels = torch.tensor([2, 0, 3, 1])
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        _, shares, scalars = step_of_several_clips(3, labels, mixup=0.02)
        own = shares[torch.arange(12), labels.repeat(3)]
        assert torch.equal(own, own[:1].expand(12))
        if own[0] > 0.95:  # hardly mixed: all right
            assert scalars["top1_accuracy"] == 1
        if own[0] < 0.05:  # nearly replaced by another video: all wrong
            assert scalars["top1_accuracy"] == 0
        seen.add(round(float(own[0])))
    assert seen == {0, 1}


def test_a_batch_of_one_video_is_warned_of_once(caplog):
    caplog.set_level(logging.WARNING)
    tuned = task(Pixels(), mixup=0.8)
    for _ in range(3):
        batch = {"clips": clips()[None, :2], "label": torch.tensor([1])}
        tuned.training_step(batch, torch.Generator())
    assert caplog.text.count("can only be mixed with itself") == 1


def test_prediction_mixes_nothing():
    tuned = task(Pixels(), cutmix=1.0)
    torch.testing.assert_close(tuned.predict(clips()), task_prediction(tuned))


def task_prediction(tuned):
    outputs = tuned.heads["classification"](tuned.backbone(clips()))
    return outputs["class_logits"].softmax(dim=-1)


def test_tokens_cannot_be_mixed():
    backbone = Pixels()
    backbone.input_kind = "tokens"
    with pytest.raises(ValueError, match="mix pixels; this backbone reads tokens"):
        task(backbone, mixup=0.8)
    with pytest.raises(ValueError, match="one of them above 0"):
        ClipMixer(4, 0.0, 0.0)
