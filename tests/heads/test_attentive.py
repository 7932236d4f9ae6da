"""The attentive classifier against the formula."""

import pytest
import torch

from vimpac_ext.heads import AttentiveHead


def test_equals_the_formula():
    torch.manual_seed(0)
    head = AttentiveHead(embed_dim=8, num_classes=3, num_heads=2)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    features = torch.randn(2, 3, 2, 2, 8)
    keys = head.input_norm(features.flatten(1, 3))
    wq, wk, wv = head.attention.in_proj_weight.chunk(3)
    bq, bk, bv = head.attention.in_proj_bias.chunk(3)
    q, k, v = head.query @ wq.T + bq, keys @ wk.T + bk, keys @ wv.T + bv
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 2.0).softmax(dim=-1)
        heads.append(weights @ v[..., part])
    pooled = head.query + head.attention.out_proj(torch.cat(heads, dim=-1))
    expected = head.linear(pooled + head.mlp(pooled))[:, 0]
    torch.testing.assert_close(head({"features": features})["class_logits"], expected)


def test_starts_with_all_classes_equal():
    head = AttentiveHead(embed_dim=8, num_classes=3)
    assert head({"features": torch.randn(2, 1, 2, 2, 8)})["class_logits"].abs().max() == 0


def test_names_a_backbone_without_features():
    with pytest.raises(ValueError, match="use ClassificationHead"):
        AttentiveHead(embed_dim=8, num_classes=3)({"cls": torch.randn(2, 8)})


def test_features_may_have_a_width_of_their_own():
    head = AttentiveHead(embed_dim=20, num_classes=3, num_heads=4, feature_dim=12)
    assert head({"features": torch.randn(2, 1, 2, 2, 12)})["class_logits"].shape == (2, 3)
    with pytest.raises(ValueError, match="num_heads=5 does not divide the width 12"):
        AttentiveHead(embed_dim=20, num_classes=3, num_heads=5, feature_dim=12)
