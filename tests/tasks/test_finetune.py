"""Fine-tuning on a frozen backbone."""

import torch
from torch import nn

from vimpac_ext.heads import ClassificationHead
from vimpac_ext.losses import CrossEntropyLoss
from vimpac_ext.tasks import FinetuneTask


class TinyBackbone(nn.Module):
    """Pixels -> BatchNorm -> dropout: both would differ in training mode."""

    input_kind = "pixels"
    embed_dim = 4

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, clip):
        return {"cls": nn.functional.dropout(self.norm(self.linear(clip)), 0.5, self.training)}


def make(freeze):
    torch.manual_seed(0)
    backbone = TinyBackbone()
    heads = {"classification": ClassificationHead(4, 3)}
    losses = {"classification": CrossEntropyLoss()}
    return FinetuneTask(backbone, heads, losses, freeze_backbone=freeze).train()


def step(task):
    batch = {"clips": torch.randn(8, 1, 6), "label": torch.arange(8) % 3}
    task.training_step(batch, torch.Generator())["loss"].backward()


def test_frozen_backbone_is_left_as_it_is():
    task = make(freeze=True)
    before = {name: value.clone() for name, value in task.backbone.state_dict().items()}
    step(task)
    after = task.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in task.backbone.parameters())
    assert task.heads["classification"].linear.bias.grad.abs().max() > 0


def test_backbone_is_trained_by_default():
    task = make(freeze=False)
    nn.init.normal_(task.heads["classification"].linear.weight)
    before = task.backbone.norm.running_mean.clone()
    step(task)
    assert task.backbone.linear.weight.grad.abs().max() > 0
    assert not torch.equal(before, task.backbone.norm.running_mean)


def test_reads_what_its_backbone_reads():
    assert make(freeze=False).input_kind == "pixels"
