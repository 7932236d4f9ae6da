"""Maskers against masks of the authors' code, the closed form of Table 10 and invariants."""

import math
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from vimpac_ext.maskers import (
    BlockMasker,
    TubeMasker,
    UniformMasker,
    blocks_to_mask,
    corrupt,
    induced_mask_ratio,
    num_blocks_for_ratio,
)
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


@pytest.mark.parametrize("case", range(4))  # the last has sides of 7 and 9 tokens
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


@pytest.mark.parametrize(
    ("grid", "num_blocks"), [((5, 16, 16), 5), ((4, 7, 9), 3), ((1, 6, 9), 2), ((3, 1, 1), 7)]
)
def test_the_closed_form_equals_counting_all_draws(grid, num_blocks):
    counted = expected_ratio(grid, num_blocks)
    assert induced_mask_ratio(grid, num_blocks) == pytest.approx(counted, abs=1e-12)


def test_a_closed_form_worked_out_by_hand():
    # One frame of 2 x 3: every box is one token, so p = 1/6; two of them hide 1 - (5/6)^2.
    assert induced_mask_ratio((1, 2, 3), 2) == pytest.approx(11 / 36, abs=1e-15)
    # Three frames: lengths 1 and 2; the middle frame is covered by 1/3 and 2/2 of the starts, an
    # outer one by 1/3 and 1/2: p = 2/3 and 5/12.
    expected = (2 / 3 + 2 * 5 / 12) / 3
    assert induced_mask_ratio((3, 1, 1), 1) == pytest.approx(expected, abs=1e-15)


TABLE_10_CELLS = [
    ((frames, size, size), num_blocks, percentage)
    for (frames, size), percentages in TABLE_10.items()
    for num_blocks, percentage in zip(range(4, 9), percentages, strict=True)
]


@pytest.mark.parametrize(("grid", "num_blocks", "percentage"), TABLE_10_CELLS)
def test_table_10(grid, num_blocks, percentage):
    by_formula = induced_mask_ratio(grid, num_blocks)
    assert 100 * by_formula == pytest.approx(percentage, abs=0.15)

    masker, generator = BlockMasker(num_blocks), torch.Generator().manual_seed(num_blocks)
    tokens = torch.zeros(1000, *grid, dtype=torch.int64)
    ratios = masker(tokens, generator).flatten(1).sum(1).double() / tokens[0].numel()
    error = float(ratios.std()) / math.sqrt(len(ratios))
    assert float(ratios.mean()) == pytest.approx(by_formula, abs=4 * error)


@pytest.mark.slow
@pytest.mark.parametrize(("grid", "num_blocks", "percentage"), TABLE_10_CELLS)
def test_table_10_by_sampling_alone(grid, num_blocks, percentage):
    masker, generator = BlockMasker(num_blocks), torch.Generator().manual_seed(num_blocks)
    tokens = torch.zeros(1, dtype=torch.int64).expand(500, *grid)
    percent = torch.cat(
        [100 * masker(tokens, generator).flatten(1).double().mean(1) for _ in range(40)]
    )
    # The expectation of one cell is 0.14 from the paper's: the sampling error comes on top.
    error = float(percent.std()) / math.sqrt(len(percent))
    assert error < 0.05
    assert float(percent.mean()) == pytest.approx(percentage, abs=0.15 + 3 * error)


@pytest.mark.parametrize(("grid", "num_blocks"), [((1, 6, 9), 2), ((3, 1, 1), 3)])
def test_sampled_masks_have_the_expected_ratio_on_small_grids(grid, num_blocks):
    masker, generator = BlockMasker(num_blocks), torch.Generator().manual_seed(0)
    tokens = torch.zeros(4000, *grid, dtype=torch.int64)
    ratios = masker(tokens, generator).flatten(1).double().mean(1)
    error = float(ratios.std()) / math.sqrt(len(ratios))
    assert float(ratios.mean()) == pytest.approx(expected_ratio(grid, num_blocks), abs=4 * error)


def test_a_target_ratio_takes_the_closest_number_of_blocks():
    # The paper's own choices for about 15 % (Table 10): 5 or 6 blocks by grid.
    for (frames, size), percentages in TABLE_10.items():
        grid = (frames, size, size)
        nearest = min(range(5), key=lambda i: abs(percentages[i] - 15))
        assert BlockMasker(ratio=0.15, grid=grid).num_blocks == 4 + nearest


@pytest.mark.parametrize("grid", [(5, 16, 16), (1, 4, 4), (3, 5, 7)])
def test_no_other_number_of_blocks_is_closer(grid):
    ratios = [induced_mask_ratio(grid, n) for n in range(1, 120)]
    for wanted in (0.001, 0.05, 0.15, 0.3, 0.5, 0.75):
        chosen = num_blocks_for_ratio(grid, wanted)
        assert abs(ratios[chosen - 1] - wanted) == min(abs(ratio - wanted) for ratio in ratios)


def test_without_any_number_there_are_five_blocks():
    assert BlockMasker().num_blocks == 5


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


@pytest.mark.parametrize("masker", [BlockMasker(3), UniformMasker(0.2), TubeMasker(0.2)])
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


@pytest.mark.parametrize(
    ("ratio", "num_hidden"),
    [(0.15, 5), (0.14, 4), (0.01, 1), (0.5, 16), (15.5 / 32, 16), (0.99, 32)],
)
def test_tubes_hide_the_same_exact_number_of_places_in_all_frames(ratio, num_hidden):
    tokens = torch.zeros(50, 5, 4, 8, dtype=torch.int64)  # 32 places
    mask = TubeMasker(ratio)(tokens, torch.Generator().manual_seed(8))
    assert torch.equal(mask, mask[:, :1].expand_as(mask))
    assert mask[:, 0].flatten(1).sum(1).tolist() == [num_hidden] * 50


def test_tubes_are_anywhere_with_equal_probability():
    tokens = torch.zeros(4000, 2, 4, 5, dtype=torch.int64)
    places = TubeMasker(0.25)(tokens, torch.Generator().manual_seed(9))[:, 0].double().flatten(1)
    error = math.sqrt(0.25 * 0.75 / 4000)
    assert (places.mean(0) - 0.25).abs().max() < 5 * error
    # 5 of 20 places without replacement: pairs occur with probability 1/4 * 4/19.
    pairs = places.T @ places / 4000
    pairs = pairs[~torch.eye(20, dtype=torch.bool)]
    assert (pairs - 1 / 19).abs().max() < 5 * math.sqrt(18 / 19**2 / 4000)


def test_padding_in_a_tube_stays():
    tokens = torch.zeros(3, 4, 4, 4, dtype=torch.int64)
    tokens[1, 2:] = DALLE.pad
    masked, mask = corrupt(tokens, TubeMasker(0.5)(tokens), DALLE)
    assert mask.flatten(1).sum(1).tolist() == [32, 16, 32]
    assert (masked[1, 2:] == DALLE.pad).all()


@pytest.mark.parametrize(
    "masker", [UniformMasker, TubeMasker, partial(BlockMasker, grid=(5, 16, 16))]
)
@pytest.mark.parametrize("ratio", [0.0, 1.0, 15])
def test_a_ratio_must_be_a_probability(masker, ratio):
    with pytest.raises(ValueError, match=f"ratio={ratio} must be between 0 and 1"):
        masker(ratio=ratio)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"num_blocks": 5, "ratio": 0.15, "grid": (5, 16, 16)}, "num_blocks=5 or ratio=0.15"),
        ({"ratio": 0.15}, "needs the grid"),
    ],
)
def test_arguments_that_make_no_blocks(arguments, message):
    with pytest.raises(ValueError, match=message):
        BlockMasker(**arguments)


@pytest.mark.parametrize(("grid", "num_blocks"), [((0, 4, 4), 1), ((5, 4, 4), 0)])
def test_there_is_no_ratio_of_nothing(grid, num_blocks):
    with pytest.raises(ValueError, match="must be at least 1"):
        induced_mask_ratio(grid, num_blocks)


def test_no_number_of_blocks_fits_an_empty_grid():
    with pytest.raises(ValueError, match=r"grid=\(5, 0, 4\) must be at least 1"):
        num_blocks_for_ratio((5, 0, 4), 0.15)
