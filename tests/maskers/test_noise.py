"""BERT noise against masks of the authors' code, by hand, and by its shares."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from vimpac_ext.maskers import BlockMasker, UniformMasker, corrupt, replace_blocks, single_blocks
from vimpac_ext.structures import SpecialTokens

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "original"
DALLE = SpecialTokens(8192)
HIDE, REPLACE, KEEP = 0.5, 0.85, 0.95  # draws that mean so


def original_noise(num_clips, num_blocks, grid, python_seed, torch_seed):
    """Boxes, choices and random tokens as the authors' code draws them, in its order."""
    random.seed(python_seed)
    generator = torch.Generator().manual_seed(torch_seed)
    longest = (2 * grid[0] // 3, grid[1] // 2, grid[2] // 2)
    lengths = torch.zeros(num_clips, num_blocks, 3, dtype=torch.int64)
    starts = torch.zeros_like(lengths)
    choice = torch.zeros(num_clips, num_blocks, 1, 1, 1, dtype=torch.float64)
    tokens = torch.zeros(num_clips, *grid, dtype=torch.int64)
    for clip in range(num_clips):
        for block in range(num_blocks):
            size = [random.randint(1, n) for n in longest]
            start = [random.randint(0, n - s) for n, s in zip(grid, size, strict=True)]
            draw = random.random()
            lengths[clip, block], starts[clip, block] = torch.tensor(size), torch.tensor(start)
            choice[clip, block] = draw
            if 0.8 <= draw < 0.9:  # only then the code draws tokens
                t, h, w = (slice(a, a + n) for a, n in zip(start, size, strict=True))
                tokens[clip, t, h, w] = torch.randint(8192, size, generator=generator)
    return single_blocks(lengths, starts, grid), choice, tokens


@pytest.mark.parametrize("case", range(4))
def test_noise_by_block_equals_the_original(case):
    data = np.load(FIXTURES / "masks.npz")
    codes, expected, labels = (
        torch.tensor(data[f"case{case}/{name}"].astype(np.int64))
        for name in ("codes", "noise_masked", "noise_labels")
    )
    blocks, choice, random_tokens = original_noise(
        len(codes),
        int(data[f"case{case}/blocks"]),
        tuple(codes.shape[1:]),
        int(data[f"case{case}/noise_py_seed"]),
        int(data[f"case{case}/noise_torch_seed"]),
    )
    assert torch.equal(replace_blocks(codes, blocks, choice, random_tokens, DALLE), expected)
    _, mask = corrupt(codes, blocks, DALLE, noise="block")
    assert torch.equal(mask, labels != -100)
    assert torch.equal(codes[mask], labels[mask])


def test_the_fixtures_have_all_three_kinds_of_blocks():
    data = np.load(FIXTURES / "masks.npz")
    kinds = set()
    for case in range(4):
        seen, labels = data[f"case{case}/noise_masked"], data[f"case{case}/noise_labels"]
        hidden = labels != -100
        kinds |= {"hidden"} if (seen[hidden] == DALLE.mask).any() else set()
        kinds |= {"kept"} if (seen[hidden] == labels[hidden]).any() else set()
        other = (seen != labels) & (seen != DALLE.mask) & hidden
        kinds |= {"random"} if other.any() else set()
    assert kinds == {"hidden", "kept", "random"}


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ((HIDE, REPLACE), [1, 204, 70, 70, 80]),
        ((REPLACE, HIDE), [1, 70, 204, 204, 80]),
        ((HIDE, KEEP), [1, 204, 204, 4, 80]),  # what is untouched writes nothing
        ((KEEP, HIDE), [1, 2, 204, 204, 80]),
        ((KEEP, KEEP), [1, 2, 3, 4, 80]),
        ((REPLACE, REPLACE), [1, 70, 70, 70, 80]),
    ],
)
def test_later_blocks_write_over_earlier_ones(choices, expected):
    special = SpecialTokens(200)
    tokens = torch.tensor([1, 2, 3, 4, 80]).view(1, 1, 1, 5)
    blocks = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]).bool().view(1, 2, 1, 1, 5)
    choice = torch.tensor(choices).view(1, 2, 1, 1, 1)
    written = replace_blocks(tokens, blocks, choice, torch.full_like(tokens, 70), special)
    assert written.flatten().tolist() == expected


def shares(tokens, noisy, mask):
    """Hidden, random and untouched share of the masked tokens, told apart by their ids."""
    seen, original = noisy[mask], tokens[mask]
    hidden = (seen == DALLE.mask).double().mean().item()
    kept = (seen == original).double().mean().item()
    return hidden, 1 - hidden - kept, kept


@pytest.mark.parametrize("masker", [UniformMasker(0.3), BlockMasker(3)])
def test_noise_by_token_has_berts_shares_in_every_mask(masker):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(8192, (60, 5, 12, 12), generator=generator)
    noisy, mask = corrupt(tokens, masker(tokens, generator), DALLE, "token", generator)
    error = 5 * math.sqrt(0.8 * 0.2 / int(mask.sum()))
    assert shares(tokens, noisy, mask) == pytest.approx((0.8, 0.1, 0.1), abs=error)
    assert torch.equal(noisy[~mask], tokens[~mask])
    # Single tokens, not blocks: neighbours agree no more often than independent choices do.
    seen_hidden = noisy == DALLE.mask
    both = mask[..., 1:] & mask[..., :-1]
    agree = (seen_hidden[..., 1:] & seen_hidden[..., :-1])[both].double().mean().item()
    assert agree == pytest.approx(0.64, abs=6 * math.sqrt(0.64 * 0.36 / int(both.sum())))


def test_noise_by_block_has_berts_shares_of_blocks_each_of_one_kind():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(8192, (3000, 3, 6, 6), generator=generator)
    blocks = BlockMasker(1).blocks(tokens, generator)
    noisy, mask = corrupt(tokens, blocks, DALLE, "block", generator)
    assert torch.equal(mask, blocks[:, 0])
    kinds = {"hidden": 0, "random": 0, "kept": 0}
    for original, seen, where in zip(tokens, noisy, mask, strict=True):
        if (seen[where] == DALLE.mask).all():
            kinds["hidden"] += 1
        elif (seen[where] == original[where]).all():
            kinds["kept"] += 1
        else:
            assert (seen[where] != DALLE.mask).all()
            kinds["random"] += 1
    error = 4 * math.sqrt(0.8 * 0.2 / 3000)
    assert kinds["hidden"] / 3000 == pytest.approx(0.8, abs=error)
    assert kinds["random"] / 3000 == pytest.approx(0.1, abs=error)
    assert kinds["kept"] / 3000 == pytest.approx(0.1, abs=error)


@pytest.mark.parametrize("noise", ["token", "block"])
def test_random_tokens_are_codes_all_equally_likely(noise):
    special = SpecialTokens(7)
    generator = torch.Generator().manual_seed(2)
    tokens = torch.full((2000, 3, 6, 6), special.pad - 1)  # an id that is drawn by none
    mask = BlockMasker(2).blocks(tokens, generator)
    mask = mask if noise == "block" else mask.any(1)
    noisy, _ = corrupt(tokens, mask, special, noise, generator)
    drawn = noisy[(noisy != special.mask) & (noisy != special.pad - 1)]
    counts = drawn.bincount(minlength=7)
    assert len(counts) == 7
    # Of every seventh token, within 5 standard errors.
    assert (counts / len(drawn) - 1 / 7).abs().max() < 5 * math.sqrt(6 / 49 / len(drawn))


@pytest.mark.parametrize("noise", ["none", "token", "block"])
def test_padding_is_neither_masked_nor_written(noise):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(8192, (40, 5, 8, 8), generator=generator)
    tokens[:, 3:] = DALLE.pad
    masker = BlockMasker(4)
    mask = masker.blocks(tokens, generator) if noise == "block" else masker(tokens, generator)
    assert mask[..., 3:, :, :].any()
    noisy, mask = corrupt(tokens, mask, DALLE, noise, generator)
    assert not mask[:, 3:].any()
    assert mask.any()
    assert (noisy[:, 3:] == DALLE.pad).all()
    assert (noisy[:, :3] != DALLE.pad).all()


@pytest.mark.parametrize("noise", ["token", "block"])
def test_noise_follows_the_generator(noise):
    tokens = torch.randint(8192, (4, 5, 8, 8), generator=torch.Generator().manual_seed(4))
    blocks = BlockMasker(4).blocks(tokens, torch.Generator().manual_seed(5))
    mask = blocks if noise == "block" else blocks.any(1)

    def noisy(seed):
        return corrupt(tokens, mask, DALLE, noise, torch.Generator().manual_seed(seed))[0]

    assert torch.equal(noisy(6), noisy(6))
    assert any(not torch.equal(noisy(6), noisy(seed)) for seed in (7, 8, 9))


def test_blocks_are_those_of_the_mask():
    tokens = torch.zeros(5, 6, 8, 8, dtype=torch.int64)
    blocks = BlockMasker(3).blocks(tokens, torch.Generator().manual_seed(6))
    assert blocks.shape == (5, 3, 6, 8, 8)
    assert torch.equal(blocks.any(1), BlockMasker(3)(tokens, torch.Generator().manual_seed(6)))


def test_an_unknown_noise_is_refused():
    tokens = torch.zeros(2, 3, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="noise='tokens' is not one of none, token, block"):
        corrupt(tokens, tokens == 0, DALLE, "tokens")


@pytest.mark.parametrize(
    ("shape", "noise", "wanted"),
    [
        ((2, 3, 4, 4), "block", "noise 'block' needs .B, blocks, T, H, W."),
        ((2, 5, 3, 4, 4), "token", "noise 'token' needs .B, T, H, W."),
        ((2, 3, 4, 5), "none", r"shape .2, 3, 4, 5. for tokens of shape .2, 3, 4, 4."),
    ],
)
def test_a_mask_of_another_shape_is_refused(shape, noise, wanted):
    tokens = torch.zeros(2, 3, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=wanted):
        corrupt(tokens, torch.ones(shape, dtype=torch.bool), DALLE, noise)
