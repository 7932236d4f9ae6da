"""The VIMPAC transformer against numbers of the authors' code, and what it promises beyond them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vimpac_ext.backbones import VimpacTransformer
from vimpac_ext.backbones.vimpac import axis_attention, convert_original_state_dict
from vimpac_ext.backbones.vimpac.layers import TransformerLayer
from vimpac_ext.registries import BACKBONES
from vimpac_ext.structures import SpecialTokens

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "original"
BACKBONE_FIXTURES = sorted(path.name for path in FIXTURES.glob("backbone_*.npz"))
GRID = (3, 4, 5)


def read_backbone(name):
    data = np.load(FIXTURES / name)
    config = json.loads(str(data["config"]))
    state = {k[3:]: torch.tensor(data[k]) for k in data.files if k.startswith("sd/")}
    model = VimpacTransformer(
        grid=(config["T"], config["H"], config["W"]),
        vocab_size=config["vocab"],
        embed_dim=config["hid"],
        num_layers=config["layers"],
        num_heads=config["heads"],
        layout=config["layout"],
        norm="pre_normalized_residual" if config["pre_ln"] else "post",
        position=config["pos_emb"],
        halve_attention=config["halve_att"],
        halve_mlp=config["halve_mlp"],
    )
    return model.eval(), state, data


def small_model(**options):
    torch.manual_seed(0)
    defaults = {"grid": GRID, "vocab_size": 20, "embed_dim": 16, "num_layers": 2, "num_heads": 4}
    return VimpacTransformer(**{**defaults, **options})


def random_tokens(batch=2, grid=GRID, vocab_size=20):
    return torch.randint(vocab_size, (batch, *grid), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", BACKBONE_FIXTURES)
@torch.no_grad()
def test_equals_the_original(name):
    model, state, data = read_backbone(name)
    model.load_state_dict(convert_original_state_dict(state)["backbone"])
    for suffix in ("", "_nopad"):
        outputs = model(torch.tensor(data[f"tokens{suffix}"]))
        for ours, theirs in (("cls", "cls"), ("features", "hiddens")):
            expected = torch.tensor(data[f"{theirs}{suffix}"])
            torch.testing.assert_close(outputs[ours], expected, atol=1e-5, rtol=0)
        if not suffix:
            pooled = outputs["features"].mean(dim=(1, 2, 3))
            torch.testing.assert_close(pooled, torch.tensor(data["pooling"]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_double_precision_is_kept():
    model, state, data = read_backbone("backbone_t_hw_postln.npz")
    model.load_state_dict(convert_original_state_dict(state)["backbone"])
    single = model(torch.tensor(data["tokens"]))["features"]
    double = model.double()(torch.tensor(data["tokens"]))["features"]
    assert double.dtype == torch.float64
    difference = (double - torch.tensor(data["hiddens"])).abs().max().item()
    assert 0 < difference < 3e-6  # the fixture's own rounding is 1.6e-6
    torch.testing.assert_close(single.double(), double, atol=1e-5, rtol=0)


def test_every_kind_of_fixture_is_there():
    assert len(BACKBONE_FIXTURES) == 15


def test_every_dropout_is_off_in_eval_mode_and_on_in_training():
    model = small_model(dropout=0.3)
    tokens = random_tokens()
    training = [model(tokens)["features"] for _ in range(2)]
    assert not torch.equal(*training)
    model.eval()
    evaluation = [model(tokens)["features"] for _ in range(2)]
    assert torch.equal(*evaluation)
    torch.testing.assert_close(
        small_model(dropout=0.0)(tokens)["features"], evaluation[0], atol=0, rtol=0
    )


def test_padding_is_not_seen_by_other_positions():
    model = small_model(dropout=0.0)
    special = SpecialTokens(20)
    tokens = random_tokens()
    tokens[0, 2] = special.pad
    tokens[1, 1, 2, 3] = special.pad
    is_pad = tokens == special.pad
    before = model(tokens)
    with torch.no_grad():
        model.token_embedding.weight[special.pad] += 10.0  # what a padded position holds changes
    after = model(tokens)
    assert torch.equal(before["cls"], after["cls"])
    assert torch.equal(before["features"][~is_pad], after["features"][~is_pad])
    assert not torch.equal(before["features"][is_pad], after["features"][is_pad])


def test_a_clip_of_padding_only_gives_finite_outputs_and_gradients():
    """What they are: see test_vimpac_reference.py."""
    for layout in ("T,H|W", "TxHxW"):
        model = small_model(dropout=0.0, layout=layout)
        outputs = model(torch.full((2, *GRID), SpecialTokens(20).pad))
        (outputs["cls"].sum() + outputs["features"].square().sum()).backward()
        assert outputs["cls"].isfinite().all()
        assert outputs["features"].isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("norm", ["post", "pre", "pre_normalized_residual"])
@pytest.mark.parametrize("position", ["hw_separation", "temporal_separation", "default"])
@pytest.mark.parametrize("halved", [False, True])
def test_every_variant_uses_all_its_parameters(norm, position, halved):
    model = small_model(norm=norm, position=position, halve_attention=halved, halve_mlp=halved)
    outputs = model(random_tokens())
    assert outputs["cls"].shape == (2, 16)
    assert outputs["features"].shape == (2, *GRID, 16)
    (outputs["cls"].sum() + outputs["features"].square().sum()).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused


def test_standard_pre_norm_adds_to_the_raw_stream():
    """With all branches at zero a standard pre-LN model is its embedding, then the last norm."""
    models = {
        norm: small_model(norm=norm, dropout=0.0) for norm in ("pre", "pre_normalized_residual")
    }
    tokens = random_tokens()
    outputs, stream = {}, {}
    for norm, model in models.items():
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith((".output.weight", ".contract.weight")):
                    parameter.zero_()
            model.token_embedding.weight.mul_(100)
            for block in model.layers[0].attention_blocks:
                block.norm.weight.fill_(3.0)
        _, positions = model.position()
        stream[norm] = model.token_embedding(tokens) + positions
        outputs[norm] = model(tokens)["features"]
    expected = F.layer_norm(stream["pre"], (16,), eps=1e-12)
    torch.testing.assert_close(outputs["pre"], expected)
    theirs = stream["pre_normalized_residual"]
    for _ in range(2):  # the blocks of the first layer; the second normalises with weight 1
        theirs = 3 * F.layer_norm(theirs, (16,), eps=1e-12)
    torch.testing.assert_close(
        outputs["pre_normalized_residual"], F.layer_norm(theirs, (16,), eps=1e-12)
    )


@pytest.mark.parametrize("layout", ["T,H|W", "TxHxW"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activation_checkpointing_changes_nothing_but_memory(layout, dropout, monkeypatch):
    calls = []
    forward = TransformerLayer.forward

    def counted(self, *args):
        calls.append(self)
        return forward(self, *args)

    monkeypatch.setattr(TransformerLayer, "forward", counted)
    results, num_calls = [], []
    for checkpointing in (False, True):
        model = small_model(layout=layout, dropout=dropout, activation_checkpointing=checkpointing)
        torch.manual_seed(6)
        calls.clear()
        outputs = model(random_tokens())
        (outputs["cls"].sum() + outputs["features"].square().sum()).backward()
        num_calls.append(len(calls))
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append([outputs["cls"], outputs["features"], *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert num_calls == [2, 4]  # each layer runs a second time


@pytest.mark.parametrize("layout", ["T,H|W", "TxHxW"])
@pytest.mark.parametrize("long_row", [2, 128])
def test_bfloat16_autocast_stays_close_to_float32(layout, long_row, monkeypatch):
    monkeypatch.setattr(axis_attention, "LONG_ROW", long_row)
    model = small_model(layout=layout).eval()
    clips = random_tokens()
    clips[0, 1:] = SpecialTokens(20).pad
    exact = model(clips)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(clips)
    for name in exact:
        torch.testing.assert_close(rounded[name].float(), exact[name], atol=0.05, rtol=0)


def test_it_compiles_into_one_graph():
    model = small_model(layout="T,H|WxT", dropout=0.0)
    clips = random_tokens()
    clips[0, 1:] = SpecialTokens(20).pad
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(clips), model(clips))


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["T,H|W", "TxHxW"])
@pytest.mark.parametrize("long_row", [2, 128])
def test_a_gpu_gives_the_same(layout, long_row, monkeypatch):
    monkeypatch.setattr(axis_attention, "LONG_ROW", long_row)
    model = small_model(layout=layout, dropout=0.3)
    clips = random_tokens()
    clips[0, 1:] = SpecialTokens(20).pad
    expected = model.eval()(clips)
    model.cuda()
    for name, tensor in model(clips.cuda()).items():
        torch.testing.assert_close(tensor.cpu(), expected[name], atol=1e-4, rtol=0)
    model.train()
    first, second = (model(clips.cuda())["features"] for _ in range(2))
    assert not torch.equal(first, second)
    assert first.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "prelayer"}, "post, pre, pre_normalized_residual"),
        ({"position": "sine"}, "hw_separation, temporal_separation, default"),
        ({"layout": "X"}, "T,H|W"),
        ({"layout": "T|H|W"}, "3 parallel axes"),
        ({"num_heads": 3}, "3 heads"),
        ({"num_heads": None}, "multiple of 64"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"vocab_size": 0}, "vocab_size must be at least 1"),
        ({"grid": (3, 0, 5)}, "grid must be at least 1, got 0"),
        ({"dropout": 1.5}, "dropout=1.5"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        small_model(**options)


def test_clips_that_do_not_fit_are_refused():
    model = small_model()
    with pytest.raises(ValueError, match=r"3, 4, 5.*got \(2, 3, 4, 6\)"):
        model(random_tokens(grid=(3, 4, 6)))
    for outside in (-1, 25):
        tokens = random_tokens()
        tokens[1, 2, 3, 4] = outside
        with pytest.raises(ValueError, match=r"0\.\.24"):
            model(tokens)


def test_any_integer_type_is_taken_and_nothing_else():
    model = small_model().eval()
    expected = model(random_tokens())["features"]
    for dtype in (torch.int16, torch.uint8, torch.int32):
        assert torch.equal(model(random_tokens().to(dtype))["features"], expected)
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(ValueError, match="token ids"):
            model(random_tokens().to(dtype))


def test_it_is_registered_and_fulfils_the_contract():
    model = BACKBONES.get("VimpacTransformer")(
        grid=GRID, vocab_size=20, embed_dim=128, num_layers=1
    )
    assert model.input_kind == "tokens"
    assert model.embed_dim == 128
    assert model.grid == GRID
    assert model.token_embedding.weight.shape == (25, 128)
