"""The classifier on frame averages against numbers by hand."""

import pytest
import torch

from vimpac_ext.heads import FrameAverageHead


def test_weighs_each_frames_average_on_its_own():
    head = FrameAverageHead(embed_dim=2, num_classes=1, grid=(3, 4, 4))
    # Inputs: frame 0 (d0, d1), frame 1 (d0, d1), frame 2 (d0, d1).
    head.linear.weight.data = torch.tensor([[1.0, 0.0, 0.0, 10.0, 100.0, 0.0]])
    features = torch.zeros(1, 3, 1, 2, 2)
    features[0, 0, 0, 0] = torch.tensor([2.0, 7.0])  # frame 0 averages (1, 3.5)
    features[0, 1, 0, 1] = torch.tensor([5.0, 4.0])  # frame 1 averages (2.5, 2)
    features[0, 2] = torch.tensor([3.0, 9.0])  # frame 2 averages (3, 9)
    logits = head({"features": features})["class_logits"]
    assert logits.tolist() == [[1 * 1 + 10 * 2 + 100 * 3]]


def test_sees_the_order_of_frames_and_not_the_places():
    head = FrameAverageHead(embed_dim=4, num_classes=3, grid=(5, 4, 4))
    torch.manual_seed(0)
    torch.nn.init.normal_(head.linear.weight)
    features = torch.randn(2, 5, 3, 4, 4)
    logits = head({"features": features})["class_logits"]
    moved = head({"features": features.flip(2, 3)})["class_logits"]
    torch.testing.assert_close(moved, logits)
    backwards = head({"features": features.flip(1)})["class_logits"]
    assert (backwards - logits).abs().max() > 0.1


def test_a_new_one_finds_all_classes_equally_likely():
    head = FrameAverageHead(embed_dim=4, num_classes=3, grid=(2, 4, 4))
    logits = head({"features": torch.randn(2, 2, 3, 3, 4)})["class_logits"]
    assert torch.equal(logits, torch.zeros(2, 3))


def test_dropout_acts_in_training_only():
    head = FrameAverageHead(embed_dim=500, num_classes=1, grid=(2, 4, 4), dropout=0.25)
    torch.nn.init.ones_(head.linear.weight)
    clip = {"features": torch.ones(1, 2, 1, 1, 500)}
    assert head.eval()(clip)["class_logits"].item() == 1000
    assert head.train()(clip)["class_logits"].item() != 1000


def test_what_it_cannot_read_is_refused():
    head = FrameAverageHead(embed_dim=4, num_classes=3, grid=(2, 4, 4))
    with pytest.raises(ValueError, match=r'needs the "features"'):
        head({"cls": torch.randn(2, 4)})
    with pytest.raises(ValueError, match="built for 2 frames, .* have 5"):
        head({"features": torch.randn(2, 5, 3, 3, 4)})


def test_features_may_have_a_width_of_their_own():
    head = FrameAverageHead(embed_dim=20, num_classes=3, grid=(2, 4, 4), feature_dim=6)
    assert head.linear.in_features == 2 * 6
    assert head({"features": torch.randn(5, 2, 1, 1, 6)})["class_logits"].shape == (5, 3)
