"""Copying the nearest visible token, against a search through all of them."""

import pytest
import torch

from vimpac_ext.visualization import nearest_visible


def slowly(tokens, mask, spatial):
    filled = tokens.clone()
    frames, height, width = tokens.shape
    cells = [(t, y, x) for t in range(frames) for y in range(height) for x in range(width)]
    for place in cells:
        if not mask[place]:
            continue
        candidates = [c for c in cells if not mask[c] and (not spatial or c[0] == place[0])]
        candidates = candidates or [c for c in cells if not mask[c]]
        best = min(candidates, key=lambda c: sum((a - b) ** 2 for a, b in zip(c, place)))  # noqa: B905
        filled[place] = tokens[best]
    return filled


@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 3, 3), (4, 1, 6), (5, 6, 2)])
def test_it_is_the_nearest_of_all(shape, ratio, spatial):
    generator = torch.Generator().manual_seed(int(10 * ratio))
    tokens = torch.arange(1000, 1000 + torch.Size(shape).numel()).view(shape)  # all distinct
    mask = torch.rand(shape, generator=generator) < ratio
    mask[0, 0, 0] = False
    mask[-1, -1, -1] = True
    before = tokens.clone()
    filled = nearest_visible(tokens, mask, spatial)
    torch.testing.assert_close(filled, slowly(tokens, mask, spatial), rtol=0, atol=0)
    torch.testing.assert_close(tokens, before, rtol=0, atol=0)


@pytest.mark.parametrize("spatial", [True, False])
def test_the_hidden_values_are_not_looked_at(spatial):
    tokens = torch.randint(50, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    mask = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    other = tokens.masked_fill(mask, 99)
    same = nearest_visible(other, mask, spatial)
    torch.testing.assert_close(nearest_visible(tokens, mask, spatial), same, rtol=0, atol=0)
    assert not (same == 99).any()


def test_space_stays_in_the_frame_and_space_time_does_not():
    tokens = torch.tensor([[[1, 2, 3]], [[4, 5, 6]]])  # two frames of 1 x 3
    mask = torch.tensor([[[False, True, True]], [[False, False, False]]])
    assert nearest_visible(tokens, mask, True)[0, 0].tolist() == [1, 1, 1]
    # The middle one is as far from 1 as from 5; the earlier one is taken.
    assert nearest_visible(tokens, mask, False)[0, 0].tolist() == [1, 1, 6]
    mask[0] = True  # nothing to see in this frame
    assert nearest_visible(tokens, mask, True)[0, 0].tolist() == [4, 5, 6]


def test_what_cannot_be_copied_is_refused():
    tokens = torch.zeros(2, 3, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="all tokens are hidden"):
        nearest_visible(tokens, torch.ones(2, 3, 3, dtype=torch.bool), True)
    with pytest.raises(ValueError, match=r"found \(2, 3, 3\) and torch.bool \(3, 3\)"):
        nearest_visible(tokens, torch.ones(3, 3, dtype=torch.bool), True)
