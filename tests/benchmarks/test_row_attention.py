"""Ways to attend along short rows: all give what the formula gives, and only such are measured."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vimpac_ext.backbones.vimpac.axis_attention import attend_rows, key_biases
from vimpac_ext.benchmarks import attention, row_attention
from vimpac_ext.benchmarks.attention import RowCase, RowOptions, measure_attention, require_equal
from vimpac_ext.benchmarks.row_attention import alternatives, folded, one_call, packed, reference

GRID = (5, 4, 3)
WAYS = {"own": attend_rows, "one_call": one_call, "packed": packed, "folded": folded}
CPU = torch.device("cpu")


def main(words):
    """What tools/benchmark.py does."""
    path = Path(__file__).resolve().parents[2] / "tools/benchmark.py"
    spec = importlib.util.spec_from_file_location("attention_tool", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.main(words)


def drawn(dtype=torch.float64, device="cpu", grid=GRID, heads=2, size=8):
    """Inputs as a backbone has them, with padding, and gradients of the results."""
    generator = torch.Generator().manual_seed(3)
    cls, tokens, d_cls, d_tokens = (
        torch.randn(3, *shape, heads, size, generator=generator).to(device, dtype)
        for shape in ((3,), (*grid, 3), (), grid)
    )
    is_pad = torch.zeros(3, *grid, dtype=torch.bool, device=device)
    is_pad[0, -1:] = True
    is_pad[1, :, 1:, 1:] = True
    is_pad[2] = True  # nothing but padding: every position sees CLS alone
    return cls.requires_grad_(), tokens.requires_grad_(), d_cls, d_tokens, is_pad


def values_and_gradients(way, pattern, inputs):
    cls, tokens, d_cls, d_tokens, is_pad = inputs
    bias = key_biases(is_pad, {pattern})[pattern]
    values = way(cls.unbind(1), tokens.unbind(4), bias, pattern)
    return *values, *torch.autograd.grad(values, (cls, tokens), (d_cls, d_tokens))


@pytest.mark.parametrize("pattern", [(1,), (2,), (3,), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("name", WAYS)
def test_values_and_gradients_are_those_of_the_reference(name, pattern):
    found = values_and_gradients(WAYS[name], pattern, drawn())
    expected = values_and_gradients(reference, pattern, drawn())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_reference_is_the_formula_of_one_token():
    """Written out for the last token of a row of two and one head."""
    inputs = drawn(grid=(2, 1, 1), heads=1)
    inputs[-1][:] = False
    _, tokens = reference(
        inputs[0].unbind(1), inputs[1].unbind(4), torch.zeros(3, 1, 1, 1, 3).double(), (1,)
    )
    (qc, kc, vc), (q, k, v) = (
        one.detach().unbind(axis) for one, axis in ((inputs[0], 1), (inputs[1], 4))
    )
    del qc
    query = q[1, 1, 0, 0, 0]
    keys = [kc[1, 0], k[1, 0, 0, 0, 0], k[1, 1, 0, 0, 0]]
    values = [vc[1, 0], v[1, 0, 0, 0, 0], v[1, 1, 0, 0, 0]]
    shares = [torch.exp((query * key).sum() / 8**0.5) for key in keys]
    expected = sum(share * value for share, value in zip(shares, values, strict=True)) / sum(shares)
    torch.testing.assert_close(tokens[1, 1, 0, 0, 0].detach(), expected)


def test_rows_are_packed_as_far_as_they_fit(monkeypatch):
    lengths = []
    original = F.scaled_dot_product_attention

    def note(query, *arguments, **options):
        lengths.append(query.shape[-2])
        return original(query, *arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", note)
    inputs = drawn(grid=(5, 16, 16))
    for pattern in ((1,), (2,)):
        for way in (one_call, packed):
            values_and_gradients(way, pattern, inputs)
    # 16 of 256 rows of 6, 5 of 80 rows of 17.
    assert lengths == [6, 16 * 6, 17, 5 * 17]


def test_the_backbones_own_comes_first_and_all_are_measured():
    options = RowOptions((3, 2, 2), "T", "bf16", clips=1, heads=2, head_size=4)
    (result,) = measure_attention([options], rounds=2)
    names = list(alternatives(CPU))
    assert names[0] == "backbone's own"
    assert alternatives(CPU)[names[0]] is attend_rows
    assert list(result.rows) == [
        f"{name}: {label}" for label in ("least ms", "median ms", "least / own") for name in names
    ]
    assert result.rows[f"{names[0]}: least / own"] == 1.0
    for name in names:
        assert 0 < result.rows[f"{name}: least ms"] <= result.rows[f"{name}: median ms"]
    assert "CLS and 3 tokens, 1 clips, 2 heads of 4, bf16" in result.title


def test_a_wrong_way_is_not_measured(monkeypatch):
    def forgets_cls(cls, tokens, key_bias, pattern):
        return attend_rows([cls[0], cls[1], 0 * cls[2]], tokens, key_bias, pattern)

    monkeypatch.setattr(
        attention, "alternatives", lambda device: {"own": attend_rows, "wrong": forgets_cls}
    )
    options = RowOptions((3, 2, 2), "T", "fp32", clips=1, heads=2, head_size=4)
    with pytest.raises(ArithmeticError, match="wrong differs from the reference by"):
        measure_attention([options], rounds=1)
    case = RowCase(options)
    require_equal(case, "own", attend_rows)
    with pytest.raises(ArithmeticError, match="by nan"):
        require_equal(
            case, "nan", lambda *arguments: [v * torch.nan for v in attend_rows(*arguments)]
        )


def test_triton_is_only_offered_where_it_runs(monkeypatch):
    monkeypatch.setattr(row_attention.importlib.util, "find_spec", lambda name: None)
    assert "triton" not in alternatives(torch.device("cuda"))
    assert "triton" not in alternatives(CPU)


def test_the_command_writes_what_it_measured(tmp_path, capsys):
    path = tmp_path / "numbers.json"
    words = ["--grid", "3x2x2", "--axes", "T", "W", "--precision", "fp32", "--clips", "1"]
    words += ["--heads", "1", "--head_size", "4", "--rounds", "1", "--output", str(path)]
    assert main(["attention", *words]) == 0
    content = json.loads(path.read_text())
    assert [result["title"][:14] for result in content["results"]] == [
        "T of 3 x 2 x 2",
        "W of 3 x 2 x 2",
    ]
    assert content["command"].startswith("python tools/benchmark.py attention --grid 3x2x2")
    assert "CLS folded in: least ms" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid", "5x16"], "three positive numbers such as 5x16x16, found '5x16'"),
        (["--clips", "0"], "must be at least 1"),
    ],
)
def test_mistakes_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        main(["attention", *words])
