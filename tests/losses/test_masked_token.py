"""Batches in which some or all clips have no masked token (values: test_losses.py)."""

import warnings

import pytest
import torch
from torch import nn

from vimpac_ext.heads import MaskedTokenHead
from vimpac_ext.losses import MaskedTokenLoss, masked_token_accuracy


def test_the_warning_comes_once():
    outputs = {"token_logits": torch.zeros(0, 4)}
    targets = {"token_targets": torch.zeros(0, dtype=torch.int64)}
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("default")  # Python's own
        for _ in range(3):
            MaskedTokenLoss()(outputs, targets)
    assert len(given) == 1


def test_a_clip_without_masked_tokens_leaves_the_others_as_they_are():
    torch.manual_seed(0)
    head = MaskedTokenHead(8, nn.Embedding(25, 8))
    tokens = torch.randint(20, (3, 2, 3, 4))
    features = torch.randn(3, 2, 3, 4, 8)
    mask = torch.rand(3, 2, 3, 4) < 0.4
    mask[1] = False

    def loss_and_gradients(clips):
        outputs = {"features": features[clips], "mask": mask[clips]}
        targets = {"token_targets": tokens[clips][mask[clips]]}
        predictions = head(outputs)
        loss = MaskedTokenLoss()(predictions, targets)
        accuracy = masked_token_accuracy(predictions, targets)
        return loss, accuracy, *torch.autograd.grad(loss, list(head.parameters()))

    torch.testing.assert_close(loss_and_gradients([0, 1, 2]), loss_and_gradients([0, 2]))


def test_without_masked_tokens_the_gradients_of_the_whole_head_are_zero():
    head = MaskedTokenHead(8, nn.Embedding(25, 8))
    features = torch.randn(2, 1, 3, 4, 8, requires_grad=True)
    outputs = head({"features": features, "mask": torch.zeros(2, 1, 3, 4, dtype=torch.bool)})
    with pytest.warns(UserWarning, match="no token is masked"):
        loss = MaskedTokenLoss()(outputs, {"token_targets": torch.zeros(0, dtype=torch.int64)})
    loss.backward()
    for tensor in (features, head.token_embedding.weight, *head.parameters()):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))
