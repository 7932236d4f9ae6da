"""InfoNCE in groups and across processes, against the authors' numbers and a slow loop."""

import math
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from vimpac_ext.losses import InfoNCELoss

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "original"


def slow_loss(first, second, temperature):
    """Eqs. 4 and 5 for one group, anchor by anchor; (n, P) each."""
    first, second = ([row / row.norm() for row in rows] for rows in (first, second))
    total = 0.0
    for anchors, positives in ((first, second), (second, first)):
        for i, anchor in enumerate(anchors):
            others = [positives[k] for k in range(len(anchors)) if k != i]
            others += [anchors[k] for k in range(len(anchors)) if k != i]
            scores = torch.stack([anchor @ other for other in [positives[i], *others]])
            total = total - temperature * (scores / temperature).log_softmax(0)[0] / len(anchors)
    return total


def slow_grouped_loss(projection, group_size, temperature):
    """Mean over groups of consecutive videos."""
    first, second = projection.chunk(2)
    groups = zip(first.split(group_size), second.split(group_size), strict=True)
    losses = [slow_loss(*group, temperature) for group in groups]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("group_size", [2, 3, 6, 12, None])
def test_groups_equal_a_slow_loop_in_value_and_gradient(group_size):
    torch.manual_seed(0)
    projection = torch.randn(24, 5, dtype=torch.float64, requires_grad=True)
    expected = slow_grouped_loss(projection, group_size or 12, 0.3)
    [expected_gradient] = torch.autograd.grad(expected, projection)
    loss = InfoNCELoss(temperature=0.3, group_size=group_size)({"projection": projection}, {})
    [gradient] = torch.autograd.grad(loss, projection)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-12, rtol=0)


def test_chance_level_tells_the_number_of_negatives():
    # All projections equal: every candidate of an anchor is as likely, 1 of 2n-1.
    projection = torch.ones(2 * 24, 4)
    for group_size in (2, 4, 24):
        loss = InfoNCELoss(group_size=group_size)({"projection": projection}, {})
        assert loss.item() == pytest.approx(2 * 0.2 * math.log(2 * group_size - 1), abs=1e-6)


@pytest.mark.parametrize("group_size", [5, 8, 24])
def test_groups_that_do_not_divide_the_videos_are_refused(group_size):
    with pytest.raises(ValueError, match=f"12 videos cannot .* groups of group_size={group_size}"):
        InfoNCELoss(group_size=group_size)({"projection": torch.randn(24, 3)}, {})


@pytest.mark.parametrize("group_size", [1, 0, -4])
def test_a_group_has_two_videos_or_more(group_size):
    with pytest.raises(ValueError, match=f"group_size={group_size} must be at least 2"):
        InfoNCELoss(group_size=group_size)


def test_no_clips_have_no_loss():
    with pytest.raises(ValueError, match="got 0 clips"):
        InfoNCELoss()({"projection": torch.randn(0, 3)}, {})


# --- several processes: each number of processes is started once, for all cases ----------------

NUM_VIDEOS, WIDTH = 12, 6
# None = all; within a process (6 or 4 videos), all of one, across (the middle process of three is
# then in both groups), all videos
GROUP_SIZES = {2: (None, 3, 6, 12), 3: (None, 2, 4, 6, 12)}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Number of processes -> what each rank's `cases` gave."""
    # Not forks of this process, whose autograd may have started threads.
    mp.get_context("forkserver").set_forkserver_preload(["vimpac_ext.losses"])  # once, not 5 times
    given = {}
    for world in (2, 3):
        folder = tmp_path_factory.mktemp(f"world{world}")
        mp.start_processes(process, (world, str(folder)), world, start_method="forkserver")
        given[world] = [torch.load(folder / f"result{rank}.pt") for rank in range(world)]
    return given


def process(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/init",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=120),
    )
    try:
        torch.save(cases(rank, world), f"{folder}/result{rank}.pt")
    finally:
        dist.destroy_process_group()


def cases(rank, world):
    return {
        "fixture": fixture_case(rank, world),
        "average": {size: average_case(rank, world, size) for size in GROUP_SIZES[world]},
        "uneven": {size: message((4, 2, 4)[rank], size) for size in (None, 2)},
        "indivisible": message(4, 3 if world == 2 else 5),
        "collectives": collectives_case(),
    }


def fixture_case(rank, world):
    data = np.load(FIXTURES / "nce_distributed.npz")
    hidden = torch.tensor(data[f"world{world}/rank{rank}/hidden"], requires_grad=True)
    loss = InfoNCELoss()({"projection": hidden}, {})
    loss.backward()
    return {"loss": loss.detach(), "gradient": hidden.grad}


def model_and_clips():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    return model, torch.randn(2, NUM_VIDEOS, WIDTH, dtype=torch.float64)


def average_case(rank, world, group_size):
    model, clips = model_and_clips()
    wrapped = nn.parallel.DistributedDataParallel(model)
    own = NUM_VIDEOS // world
    local = clips[:, rank * own : (rank + 1) * own].reshape(2 * own, WIDTH)
    loss = InfoNCELoss(group_size=group_size)({"projection": wrapped(local)}, {})
    loss.backward()
    return {"loss": loss.detach(), "gradients": [p.grad for p in model.parameters()]}


def message(num_videos, group_size):
    try:
        InfoNCELoss(group_size=group_size)({"projection": torch.randn(2 * num_videos, 3)}, {})
    except ValueError as error:
        return str(error)
    return "no error"


def collectives_case():
    """Numbers that each all_gather of a step sends, with groups within a process and across."""
    sent, gather = [], dist.all_gather
    dist.all_gather = lambda parts, own: (sent.append(own.numel()), gather(parts, own))
    for group_size in (2, None):
        InfoNCELoss(group_size=group_size)({"projection": torch.randn(8, 3)}, {})
    dist.all_gather = gather
    return sent


@pytest.mark.parametrize("world", [2, 3])
def test_processes_equal_the_original_in_value_and_gradient(world, results):
    data = np.load(FIXTURES / "nce_distributed.npz")
    for rank, result in enumerate(results[world]):
        expected = torch.tensor(data[f"world{world}/rank{rank}/loss"])
        gradient = torch.tensor(data[f"world{world}/rank{rank}/grad"])
        given = result["fixture"]
        torch.testing.assert_close(given["loss"], expected, atol=6e-8, rtol=1e-7)
        torch.testing.assert_close(given["gradient"], gradient, atol=6e-8, rtol=0)


@pytest.mark.parametrize(
    ("world", "group_size"), [(world, size) for world in (2, 3) for size in GROUP_SIZES[world]]
)
def test_the_averaged_gradient_is_that_of_one_process(world, group_size, results):
    model, clips = model_and_clips()
    expected = slow_grouped_loss(model(clips.flatten(0, 1)), group_size or NUM_VIDEOS, 0.2)
    expected.backward()
    given = [result["average"][group_size] for result in results[world]]
    mean = torch.stack([rank["loss"] for rank in given]).mean()
    torch.testing.assert_close(mean, expected.detach(), atol=1e-12, rtol=0)
    for rank in given:
        for gradient, parameter in zip(rank["gradients"], model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("world", "sizes"), [(2, "[4, 2]"), (3, "[4, 2, 4]")])
@pytest.mark.parametrize("group_size", [None, 2])
def test_every_process_is_told_of_different_batches(world, sizes, group_size, results):
    for result in results[world]:
        assert f"the same number of videos, found {sizes}" in result["uneven"][group_size]


@pytest.mark.parametrize(("world", "everything", "group_size"), [(2, 8, 3), (3, 12, 5)])
def test_every_process_is_told_of_groups_that_do_not_divide(world, everything, group_size, results):
    for result in results[world]:
        held = f"{world} processes of 4 videos, {everything} in all, cannot be divided"
        assert held in result["indivisible"]
        assert f"group_size={group_size}" in result["indivisible"]


@pytest.mark.parametrize("world", [2, 3])
def test_groups_within_a_process_are_not_gathered(world, results):
    # The number of videos is exchanged in both cases, 8 projections of 3 in the second only.
    for result in results[world]:
        assert result["collectives"] == [1, 1, 24]
