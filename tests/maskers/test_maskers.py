"""Maskers against masks of the authors' code, the closed form of Table 10 and invariants."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from vimpac_ext.maskers import BlockMasker, UniformMasker, blocks_to_mask, corrupt
from vimpac_ext.structures import SpecialTokens

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "original"
DALLE = SpecialTokens(8192)

# Table 10 of the paper: (frames, map size) -> masked percentage for 4 to 8 blocks.
TABLE_10 = {
    (5, 16): (11.9, 14.5, 17.0, 19.4, 21.7),
    (5, 32): (10.6, 13.1, 15.2, 17.5, 19.5),
    (10, 16): (10.4, 12.8, 15.0, 17.1, 19.2),
    (10, 32): (9.3, 11.4, 13.4, 15.4, 17.2),
}


def original_blocks(num_clips, num_blocks, grid, seed):
    """Lengths and starts as the authors' code draws them, in its order."""
    random.seed(seed)
    longest = (2 * grid[0] // 3, grid[1] // 2, grid[2] // 2)
    lengths = np.zeros((num_clips, num_blocks, 3), dtype=np.int64)
    starts = np.zeros_like(lengths)
    for clip in range(num_clips):
        for block in range(num_blocks):
            lengths[clip, block] = [random.randint(1, n) for n in longest]
            starts[clip, block] = [
                random.randint(0, size - length)
                for size, length in zip(grid, lengths[clip, block], strict=True)
            ]
    return torch.tensor(lengths), torch.tensor(starts)


@pytest.mark.parametrize("case", range(4))
def test_union_of_blocks_and_corruption_equal_the_original(case):
    data = np.load(FIXTURES / "masks.npz")
    arrays = {
        name: torch.tensor(data[f"case{case}/{name}"].astype(np.int64))
        for name in ("codes", "masked", "labels")
    }
    codes = arrays["codes"]
    grid = tuple(codes.shape[1:])
    lengths, starts = original_blocks(
        len(codes), int(data[f"case{case}/blocks"]), grid, int(data[f"case{case}/py_seed"])
    )
    masked, mask = corrupt(codes, blocks_to_mask(lengths, starts, grid), DALLE)
    assert torch.equal(masked, arrays["masked"])
    assert torch.equal(mask, arrays["labels"] != -100)
    assert torch.equal(codes[mask], arrays["labels"][mask])
    assert (codes == DALLE.pad).any(), "the fixture has no padding to respect"


def coverage(size, longest):
    """P(a block covers position i) along one axis, by counting all equally likely draws."""
    covered = np.zeros(size)
    for length in range(1, longest + 1):
        for start in range(size - length + 1):
            covered[start : start + length] += 1 / longest / (size - length + 1)
    return covered


def expected_ratio(grid, num_blocks):
    """Mean over positions of 1 - (1 - pT pH pW)^n."""
    longest = (max(1, 2 * grid[0] // 3), max(1, grid[1] // 2), max(1, grid[2] // 2))
    p = [coverage(size, most) for size, most in zip(grid, longest, strict=True)]
    joint = p[0][:, None, None] * p[1][:, None] * p[2]
    return float((1 - (1 - joint) ** num_blocks).mean())


def test_the_closed_form_gives_table_10():
    for (frames, size), percentages in TABLE_10.items():
        for num_blocks, percentage in zip(range(4, 9), percentages, strict=True):
            ratio = 100 * expected_ratio((frames, size, size), num_blocks)
            assert ratio == pytest.approx(percentage, abs=0.15), (frames, size, num_blocks)


@pytest.mark.parametrize(
    ("grid", "num_blocks"),
    [((5, 16, 16), 5), ((10, 32, 32), 4), ((5, 32, 32), 8), ((1, 6, 9), 2), ((3, 1, 1), 3)],
)
def test_sampled_masks_have_the_expected_ratio(grid, num_blocks):
    masker, generator = BlockMasker(num_blocks), torch.Generator().manual_seed(0)
    tokens = torch.zeros(500, *grid, dtype=torch.int64)
    ratios = torch.cat([masker(tokens, generator).flatten(1).double().mean(1) for _ in range(4)])
    error = float(ratios.std()) / math.sqrt(len(ratios))
    assert float(ratios.mean()) == pytest.approx(expected_ratio(grid, num_blocks), abs=4 * error)


def test_every_single_block_is_a_box_of_allowed_size_and_all_sizes_occur():
    grid = (6, 7, 8)
    masks = BlockMasker(1)(
        torch.zeros(3000, *grid, dtype=torch.int64), torch.Generator().manual_seed(1)
    )
    sizes = []
    for mask in masks:
        cells = mask.nonzero()
        size = cells.amax(0) - cells.amin(0) + 1
        assert len(cells) == size.prod()  # a full box
        sizes.append(size)
    for axis, longest in enumerate((4, 3, 4)):
        counts = torch.stack(sizes)[:, axis].bincount()[1:]
        assert len(counts) == longest
        assert (counts / 3000 - 1 / longest).abs().max() < 0.05


def test_starts_reach_both_ends():
    masks = BlockMasker(1)(
        torch.zeros(3000, 4, 5, 6, dtype=torch.int64), torch.Generator().manual_seed(2)
    )
    assert masks.any(0).all()


@pytest.mark.parametrize("masker", [BlockMasker(3), UniformMasker(0.2)])
def test_masks_follow_the_generator_and_differ_between_clips(masker):
    tokens = torch.zeros(8, 5, 8, 8, dtype=torch.int64)
    first = masker(tokens, torch.Generator().manual_seed(3))
    assert first.dtype == torch.bool
    assert first.shape == tokens.shape
    assert torch.equal(first, masker(tokens, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, masker(tokens, torch.Generator().manual_seed(4)))
    assert len({tuple(mask.flatten().tolist()) for mask in first}) == 8
    torch.manual_seed(5)
    without = masker(tokens)
    torch.manual_seed(5)
    assert torch.equal(without, masker(tokens))


def test_uniform_masker_hides_each_token_with_the_given_probability():
    tokens = torch.zeros(200, 5, 8, 8, dtype=torch.int64)
    mask = UniformMasker(0.15)(tokens, torch.Generator().manual_seed(6)).double()
    assert float(mask.mean()) == pytest.approx(0.15, abs=4 * math.sqrt(0.1275 / mask.numel()))
    per_position = mask.mean(0)
    assert (per_position - 0.15).abs().max() < 5 * math.sqrt(0.1275 / 200)


def test_corruption_leaves_padding_and_the_input_alone():
    tokens = torch.randint(8192, (2, 3, 4, 4), generator=torch.Generator().manual_seed(7))
    tokens[1, 2] = DALLE.pad
    before = tokens.clone()
    masked, mask = corrupt(tokens, torch.ones_like(tokens, dtype=torch.bool), DALLE)
    assert torch.equal(tokens, before)
    assert torch.equal(mask, tokens != DALLE.pad)
    assert torch.equal(masked, tokens.where(~mask, torch.tensor(DALLE.mask)))


@pytest.mark.parametrize("ratio", [0.0, 1.0, 15])
def test_a_ratio_must_be_a_probability(ratio):
    with pytest.raises(ValueError, match="between 0 and 1"):
        UniformMasker(ratio)


def test_at_least_one_block():
    with pytest.raises(ValueError, match="num_blocks=0"):
        BlockMasker(0)
