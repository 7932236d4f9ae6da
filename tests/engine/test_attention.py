"""Attention of CLS, against a slow softmax and against what the model computes with it."""

import math

import pytest
import torch
from torch import nn

from vimpac_ext.backbones import VimpacTransformer
from vimpac_ext.backbones.vimpac.axis_attention import AXES, AxisAttention
from vimpac_ext.config import ConfigError
from vimpac_ext.engine.figures import cls_attention

GRID = (3, 4, 5)
LAYOUTS = ["T,H|W", "T|H|W", "TxHxW", "T,HxW"]


def backbone(layout, **options):
    torch.manual_seed(0)
    model = VimpacTransformer(
        grid=GRID, vocab_size=30, embed_dim=24, num_layers=2, num_heads=6, layout=layout, **options
    ).eval()
    for parameter in model.parameters():  # far from uniform attention
        nn.init.normal_(parameter, std=0.5)
    return model


def clip(padded_frames=1):
    tokens = torch.randint(30, (2, *GRID), generator=torch.Generator().manual_seed(1))
    tokens[1, len(tokens[1]) - padded_frames :] = 31  # [PAD]
    return tokens


def inputs_and_outputs(model, tokens):
    """Of every attention module in the order of layers and blocks."""
    seen, hooks = [], []
    for module in model.modules():
        if isinstance(module, AxisAttention):
            hooks.append(
                module.register_forward_hook(lambda m, i, o: seen.append((m, i[0], i[1], o)))
            )
    with torch.inference_mode():
        model(tokens)
    for hook in hooks:
        hook.remove()
    return seen


def rows_of(pattern):
    """The cells of each row of a pattern."""
    axes = ["THW".index(letter) for letter in pattern.split("x")]
    rows = {}
    for t in range(GRID[0]):
        for y in range(GRID[1]):
            for x in range(GRID[2]):
                cell = (t, y, x)
                key = tuple(v for axis, v in enumerate(cell) if axis not in axes)
                rows.setdefault(key, []).append(cell)
    return list(rows.values())


@torch.inference_mode()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_the_softmax_over_each_row(layout):
    model, tokens = backbone(layout), clip()
    found = iter(cls_attention(model, tokens))
    for module, cls, grid, _ in inputs_and_outputs(model, tokens):
        num_parts, heads, size = module.split
        cls_parts = module.qkv(cls).view(2, num_parts, heads, size)
        grid_parts = module.qkv(grid).view(2, *GRID, num_parts, heads, size)
        for index in range(len(module.patterns)):
            part = next(found)
            rows = rows_of(part.pattern)
            for video in range(2):
                for head in range(heads):
                    query = cls_parts[video, 3 * index, head]
                    on_tokens, on_cls = torch.zeros(GRID), 0.0
                    for row in rows:
                        keys = [cls_parts[video, 3 * index + 1, head]]
                        keys += [grid_parts[video][cell][3 * index + 1, head] for cell in row]
                        scores = [float(query @ key) / math.sqrt(size) for key in keys]
                        for i, cell in enumerate(row, 1):
                            if tokens[video][cell] == 31:
                                scores[i] = -math.inf
                        weights = torch.tensor(scores).softmax(0) / len(rows)
                        on_cls += weights[0]
                        for i, cell in enumerate(row, 1):
                            on_tokens[cell] = weights[i]
                    torch.testing.assert_close(part.tokens[video, head], on_tokens)
                    torch.testing.assert_close(part.itself[video, head], on_cls)
    assert next(found, None) is None


@torch.inference_mode()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_weights_the_values_to_what_the_model_gives_cls(layout):
    model, tokens = backbone(layout), clip()
    found = iter(cls_attention(model, tokens))
    for module, cls, grid, (cls_result, _) in inputs_and_outputs(model, tokens):
        results = []
        for index in range(len(module.patterns)):
            part = next(found)
            own = module.qkv(cls).view(2, *module.split)[:, 3 * index + 2]  # (B, h, e)
            values = module.qkv(grid).view(2, *GRID, *module.split)[..., 3 * index + 2, :, :]
            weighted = torch.einsum("bnthw,bthwne->bne", part.tokens, values)
            results.append(weighted + part.itself[..., None] * own)
        torch.testing.assert_close(torch.cat(results, 1).flatten(1), cls_result, atol=1e-5, rtol=0)


def test_shares_add_up_to_one_and_padding_gets_none():
    model, tokens = backbone("T,H|W"), clip(padded_frames=2)
    found = cls_attention(model, tokens)
    assert [(part.layer, part.pattern) for part in found] == [
        (layer, pattern) for layer in (1, 2) for pattern in AXES
    ]
    for part in found:
        total = part.tokens.sum(dim=(2, 3, 4)) + part.itself
        torch.testing.assert_close(total, torch.ones_like(total))
        assert (part.tokens[1][:, 1:] == 0).all()
        assert (part.tokens[0] > 0).all()


def test_the_model_computes_the_same_with_and_without_looking():
    model, tokens = backbone("T,H|W"), clip()
    with torch.inference_mode():
        before = model(tokens)
        cls_attention(model, tokens)
        after = model(tokens)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_other_backbones_are_named():
    with pytest.raises(ConfigError, match="Linear has no axis attention"):
        cls_attention(nn.Linear(1, 1), clip())
