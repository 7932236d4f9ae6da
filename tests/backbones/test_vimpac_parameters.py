"""How many parameters the VIMPAC transformer has (the paper's tables) and how they start."""

import math

import pytest
import torch

from vimpac_ext.backbones import VimpacTransformer

LARGE_HALF = {"embed_dim": 1024, "num_layers": 24, "halve_attention": True, "halve_mlp": True}


@pytest.mark.parametrize(
    ("table", "grid", "options", "printed"),
    [
        ("2: 6 x 512", (5, 16, 16), {}, "29.4M"),
        ("2: 6 x 768", (5, 16, 16), {"embed_dim": 768}, "63.0M"),
        ("2: 12 x 512", (5, 16, 16), {"num_layers": 12}, "54.7M"),
        ("2: 12 x 768", (5, 16, 16), {"embed_dim": 768, "num_layers": 12}, "119.7M"),
        ("2: 24 x 1024", (5, 16, 16), LARGE_HALF, "210.1M"),
        ("11: Small", (5, 16, 16), {}, "29.4M"),
        ("11: Base", (5, 16, 16), {"embed_dim": 768, "num_layers": 12}, "119.7M"),
        ("11: Large-Half at 256 pixels", (10, 32, 32), LARGE_HALF, "210.1M"),
        ("14: TxHxW", (5, 16, 16), {"layout": "TxHxW"}, "23.1M"),
        ("14: T,H,W", (5, 16, 16), {"layout": "T,H,W"}, "35.8M"),
        ("14: T,H|W", (5, 16, 16), {"layout": "T,H|W"}, "29.4M"),
    ],
)
def test_parameter_counts_of_the_paper(table, grid, options, printed):
    with torch.device("meta"):
        model = VimpacTransformer(grid, vocab_size=8192, **options)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"{count / 1e6:.1f}M" == printed


def test_one_row_of_table_14_does_not_follow_from_the_papers_blocks():
    """It gives "T,HxW" 27.1M, but joining axes takes no weights away from "T,H|W"."""
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in VimpacTransformer((5, 16, 16), 8192, layout=x).parameters())
            for x in ("T,HxW", "T,H|W")
        ]
    assert counts == [29_442_048, 29_442_048]


@pytest.mark.parametrize(
    ("options", "head_size", "mlp_dim"),
    [({}, 64, 2048), ({"embed_dim": 768, "num_layers": 12}, 64, 3072), (LARGE_HALF, 32, 2048)],
)
def test_sizes_of_table_11(options, head_size, mlp_dim):
    with torch.device("meta"):
        model = VimpacTransformer((5, 16, 16), vocab_size=8192, layout="T", **options)
    layer = model.layers[0]
    _, num_heads, size = layer.attention_blocks[0].attention.split
    assert (num_heads, size) == (model.embed_dim // 64, head_size)
    assert layer.mlp.expand.out_features == mlp_dim


def initial_std(name, norm, num_residuals, num_factors):
    """Standard deviation of a parameter of the authors' models at the start, None = constant."""
    if name.endswith(".bias") or "norm." in name:
        return None
    if norm != "post" and name.endswith((".output.weight", ".contract.weight")):
        return 0.02 / math.sqrt(num_residuals)
    if name.startswith("position.") and name not in ("position.cls", "position.joint"):
        return 0.02 / math.sqrt(num_factors)
    return 0.02


@pytest.mark.parametrize(
    ("norm", "position", "num_factors"),
    [
        ("post", "hw_separation", 3),
        ("pre", "temporal_separation", 2),
        ("pre_normalized_residual", "default", 1),
    ],
)
def test_initialisation_is_the_originals(norm, position, num_factors):
    torch.manual_seed(5)
    model = VimpacTransformer(
        (20, 9, 11), 500, embed_dim=128, num_layers=2, norm=norm, position=position
    )
    num_residuals = 2 * (2 + 1)  # two layers of two attention blocks and an MLP
    for name, parameter in model.named_parameters():
        std = initial_std(name, norm, num_residuals, num_factors)
        if std is None:
            expected = 0.0 if name.endswith(".bias") else 1.0
            assert (parameter == expected).all(), name
            continue
        count = parameter.numel()
        assert parameter.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(count)), name
        assert parameter.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * count)), name
        outliers = (parameter.abs() > 2 * std).float().mean().item()  # normal, not uniform
        assert outliers == pytest.approx(0.0455, abs=5 * math.sqrt(0.0434 / count)), name
