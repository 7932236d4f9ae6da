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


# --- several processes ---------------------------------------------------------------------


def spawn(worker, num_processes, tmp_path, *arguments):
    """Runs ``worker(rank, *arguments)`` in processes of one group; returns what each gave."""
    arguments = (num_processes, str(tmp_path), worker, arguments)
    mp.start_processes(_process, arguments, num_processes, start_method="fork")
    return [torch.load(tmp_path / f"result{rank}.pt") for rank in range(num_processes)]


def _process(rank, num_processes, folder, worker, arguments):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/init",
        rank=rank,
        world_size=num_processes,
        timeout=timedelta(seconds=60),
    )
    try:
        torch.save(worker(rank, *arguments), f"{folder}/result{rank}.pt")
    finally:
        dist.destroy_process_group()


def fixture_worker(rank, world):
    data = np.load(FIXTURES / "nce_distributed.npz")
    hidden = torch.tensor(data[f"world{world}/rank{rank}/hidden"], requires_grad=True)
    loss = InfoNCELoss()({"projection": hidden}, {})
    loss.backward()
    return {"loss": loss.detach(), "gradient": hidden.grad}


@pytest.mark.parametrize("world", [2, 3])
def test_processes_equal_the_original_in_value_and_gradient(world, tmp_path):
    data = np.load(FIXTURES / "nce_distributed.npz")
    for rank, result in enumerate(spawn(fixture_worker, world, tmp_path, world)):
        expected = torch.tensor(data[f"world{world}/rank{rank}/loss"])
        gradient = torch.tensor(data[f"world{world}/rank{rank}/grad"])
        torch.testing.assert_close(result["loss"], expected, atol=6e-8, rtol=1e-7)
        torch.testing.assert_close(result["gradient"], gradient, atol=6e-8, rtol=0)


NUM_VIDEOS, WIDTH = 12, 6


def model_and_clips():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    return model, torch.randn(2, NUM_VIDEOS, WIDTH, dtype=torch.float64)


def ddp_worker(rank, world, group_size):
    model, clips = model_and_clips()
    wrapped = nn.parallel.DistributedDataParallel(model)
    own = NUM_VIDEOS // world
    local = clips[:, rank * own : (rank + 1) * own].reshape(2 * own, WIDTH)
    loss = InfoNCELoss(group_size=group_size)({"projection": wrapped(local)}, {})
    loss.backward()
    return {"loss": loss.detach(), "gradients": [p.grad for p in model.parameters()]}


@pytest.mark.parametrize(
    ("world", "group_size"),
    [
        (2, None),
        (3, None),
        (2, 3),  # within a process, which holds 6
        (3, 4),  # all of a process
        (3, 6),  # across: the middle process is in both groups
        (2, 12),  # all videos
    ],
)
def test_the_averaged_gradient_is_that_of_one_process(world, group_size, tmp_path):
    model, clips = model_and_clips()
    expected = slow_grouped_loss(model(clips.flatten(0, 1)), group_size or NUM_VIDEOS, 0.2)
    expected.backward()
    results = spawn(ddp_worker, world, tmp_path, world, group_size)
    mean = torch.stack([result["loss"] for result in results]).mean()
    torch.testing.assert_close(mean, expected.detach(), atol=1e-12, rtol=0)
    for result in results:
        for gradient, parameter in zip(result["gradients"], model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-12, rtol=0)


def message_worker(rank, sizes, group_size):
    try:
        InfoNCELoss(group_size=group_size)({"projection": torch.randn(2 * sizes[rank], 3)}, {})
    except ValueError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("group_size", [None, 2])
def test_every_process_is_told_of_different_batches(group_size, tmp_path):
    for message in spawn(message_worker, 2, tmp_path, (4, 2), group_size):
        assert "the same number of videos, found [4, 2]" in message


def test_every_process_is_told_of_groups_that_do_not_divide(tmp_path):
    for message in spawn(message_worker, 2, tmp_path, (4, 4), 3):
        assert "2 processes of 4 videos, 8 in all, cannot be divided" in message
        assert "group_size=3" in message


def local_worker(rank):
    collectives = []
    gather = dist.all_gather

    def counted(parts, own):
        collectives.append(own.numel())
        gather(parts, own)

    dist.all_gather = counted
    for group_size in (2, None):
        InfoNCELoss(group_size=group_size)({"projection": torch.randn(8, 3)}, {})
    return collectives


def test_groups_within_a_process_are_not_gathered(tmp_path):
    # The number of videos is exchanged in both cases, 8 projections of 3 in the second only.
    assert spawn(local_worker, 2, tmp_path) == [[1, 1, 24], [1, 1, 24]]
