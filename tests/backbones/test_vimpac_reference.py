"""The VIMPAC transformer against a plain, slow one, which itself reproduces the authors' numbers.

The fixtures hold the layouts that the authors' code knows; here are joined axes, other sizes,
gradients and the places of dropout.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from slow_vimpac import slow_backbone

from vimpac_ext.backbones import VimpacTransformer
from vimpac_ext.backbones.vimpac import axis_attention, convert_original_state_dict, dropout
from vimpac_ext.structures import SpecialTokens

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "original"
VOCAB_SIZE = 9
SPECIAL = SpecialTokens(VOCAB_SIZE)


def make_model(layout, grid=(2, 3, 2), embed_dim=12, num_heads=6, num_layers=1, **options):
    """In float64, with weights that are far from their start, so that mistakes show."""
    torch.manual_seed(0)
    model = VimpacTransformer(
        grid,
        VOCAB_SIZE,
        embed_dim=embed_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        layout=layout,
        **options,
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def make_clips(grid):
    """Three clips: tokens only, scattered padding and masks, and a padded end."""
    torch.manual_seed(1)
    clips = torch.randint(VOCAB_SIZE, (3, *grid))
    draw = torch.rand(grid)
    clips[1][draw < 0.3] = SPECIAL.pad
    clips[1][draw > 0.8] = SPECIAL.mask
    clips[2].flatten()[clips[2].numel() // 2 :] = SPECIAL.pad
    return clips


def outputs_and_gradients(outputs, parameters):
    torch.manual_seed(2)
    total = sum((output * torch.randn_like(output)).sum() for output in outputs)
    return [*outputs, *torch.autograd.grad(total, parameters)]


def assert_equals_slow_one(model, clips, layout, num_heads=6, **options):
    parameters = dict(model.named_parameters())
    results = model(clips)
    ours = outputs_and_gradients([results["cls"], results["features"]], parameters.values())
    slow = slow_backbone(parameters, clips, layout, num_heads, **options)
    expected = outputs_and_gradients(slow, parameters.values())
    torch.testing.assert_close(ours, expected, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize(
    "name", ["t_hw_postln", "t_h_w_preln", "t_hw_halve", "t_hw_posemb_default", "t_hw_posemb_tsep"]
)
def test_the_slow_one_equals_the_original(name):
    data = np.load(FIXTURES / f"backbone_{name}.npz")
    config = json.loads(str(data["config"]))
    state = {k[3:]: torch.tensor(data[k]) for k in data.files if k.startswith("sd/")}
    cls, features = slow_backbone(
        convert_original_state_dict(state)["backbone"],
        torch.tensor(data["tokens"]),
        config["layout"],
        config["heads"],
        norm="pre_normalized_residual" if config["pre_ln"] else "post",
        position=config["pos_emb"],
    )
    torch.testing.assert_close(cls, torch.tensor(data["cls"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(features, torch.tensor(data["hiddens"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["TxHxW", "T,HxW", "TxH|W", "H|WxT", "HxT,W", "T|H|W", "T,H|W"])
def test_every_layout_in_value_and_gradient(layout):
    model = make_model(layout, num_layers=2, dropout=0.0)
    assert_equals_slow_one(model, make_clips((2, 3, 2)), layout)


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 3, 2), (3, 1, 2), (2, 4, 1), (1, 1, 5)])
@pytest.mark.parametrize("layout", ["T,H|W", "TxHxW", "T,HxW"])
def test_odd_grids(grid, layout):
    assert_equals_slow_one(make_model(layout, grid, dropout=0.0), make_clips(grid), layout)


@pytest.mark.parametrize(
    ("norm", "position", "halved"),
    [
        ("pre", "hw_separation", False),
        ("pre", "default", True),
        ("pre_normalized_residual", "temporal_separation", True),
        ("post", "temporal_separation", True),
        ("post", "default", False),
    ],
)
def test_every_variant_with_joined_axes(norm, position, halved):
    options = {"norm": norm, "position": position}
    model = make_model(
        "T,HxW", halve_attention=halved, halve_mlp=halved, dropout=0.0, num_layers=2, **options
    )
    assert_equals_slow_one(model, make_clips((2, 3, 2)), "T,HxW", **options)


def test_an_odd_width_may_be_halved():
    model = make_model("T", embed_dim=13, num_heads=3, halve_attention=True, dropout=0.0)
    assert model.layers[0].attention_blocks[0].attention.qkv.weight.shape == (18, 13)
    assert_equals_slow_one(model, make_clips((2, 3, 2)), "T", num_heads=3)


@pytest.mark.parametrize("layout", ["TxHxW", "T,HxW"])
def test_long_rows_take_pytorchs_attention_and_give_the_same(layout, monkeypatch):
    monkeypatch.setattr(axis_attention, "LONG_ROW", 2)
    model = make_model(layout, dropout=0.0)
    assert_equals_slow_one(model, make_clips((2, 3, 2)), layout)


@pytest.mark.parametrize(("grid", "layout"), [((1, 1, 5), "W"), ((1, 4, 1), "H"), ((6, 1, 1), "T")])
def test_joined_axes_on_a_line_are_the_axis(grid, layout):
    clips = make_clips(grid)
    axis = make_model(layout, grid).eval()(clips)
    joined = make_model("TxHxW", grid).eval()(clips)
    for name in ("cls", "features"):
        torch.testing.assert_close(joined[name], axis[name])


def test_the_order_of_joined_axes_does_not_matter():
    clips = make_clips((2, 3, 2))
    first, second = (make_model(layout).eval()(clips) for layout in ("TxHxW", "WxTxH"))
    assert torch.equal(first["features"], second["features"])


@pytest.mark.parametrize("norm", ["post", "pre", "pre_normalized_residual"])
@pytest.mark.parametrize("layout", ["T,H|W", "TxHxW"])
def test_dropout_stands_where_the_original_has_it(norm, layout, monkeypatch):
    """With a function of the single element in place of dropout both must agree."""

    def probe(x, probability=0.1):
        assert probability in (0.0, 0.1)
        return x * (1 + 0.4 * torch.sin(5 * x)) if probability else x

    monkeypatch.setattr(dropout, "fast_dropout", probe)
    monkeypatch.setattr(dropout, "residual_dropout", lambda r, x, p: r + probe(x, p))
    monkeypatch.setattr(axis_attention, "fast_dropout", probe)
    model = make_model(layout, norm=norm, dropout=0.1, num_layers=2)
    clips = make_clips((2, 3, 2))
    assert_equals_slow_one(model, clips, layout, norm=norm, drop=probe)
    assert_equals_slow_one(model.eval(), clips, layout, norm=norm)


def test_in_a_clip_of_padding_every_position_sees_cls_alone():
    """So CLS is what it is in a clip of one padded token, and so is that token."""
    padding = {grid: torch.full((1, *grid), SPECIAL.pad) for grid in ((2, 3, 2), (1, 1, 1))}
    for layout in ("T,H|W", "T,HxW"):
        whole = make_model(layout, num_layers=2).eval()
        state = whole.state_dict()
        for table in ("frames", "height", "width"):
            state[f"position.{table}"] = state[f"position.{table}"][:1]
        single = make_model(layout, (1, 1, 1), num_layers=2).eval()
        single.load_state_dict(state)
        outputs, expected = whole(padding[2, 3, 2]), single(padding[1, 1, 1])
        assert outputs["features"].isfinite().all()
        torch.testing.assert_close(outputs["cls"], expected["cls"])
        torch.testing.assert_close(
            outputs["features"][:, :1, :1, :1], expected["features"], atol=1e-12, rtol=0
        )
