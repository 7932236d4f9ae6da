"""BatchNorm over processes: two of them with parts of a batch equal one with the whole."""

import multiprocessing
import traceback

import pytest
import torch
from torch import distributed, nn

from vimpac_ext.heads import ProjectionHead, SyncBatchNorm1d

WORLD_SIZE = 2
# Clips of process 0 and 1: equal, unequal, one each, and a process without any.
SPLITS = [(4, 4), (2, 5), (1, 1), (3, 0)]


def make_head(dtype=torch.float64):
    torch.manual_seed(0)
    head = ProjectionHead(6, hidden_dim=5, output_dim=4, num_layers=3, norm_after_last=True)
    for parameter in head.parameters():  # BatchNorm's bias and weight away from 0 and 1, too
        nn.init.normal_(parameter, std=0.5)
    return head.to(dtype)


def make_batch(num_clips, dtype=torch.float64):
    """Clips far from zero (where sums of squares cancel) and the gradient of their projection."""
    torch.manual_seed(num_clips)
    return torch.randn(num_clips, 6, dtype=dtype) + 100, torch.randn(num_clips, 4, dtype=dtype)


def two_steps(head, clips, weights):
    """What there is to compare after a second training step: outputs, gradients, statistics."""
    clips = clips.clone().requires_grad_()
    for _ in range(2):
        head.zero_grad()
        clips.grad = None
        projection = head({"cls": clips})["projection"]
        (projection * weights).sum().backward()
    parameters = {name: p.grad for name, p in head.named_parameters()}
    return projection.detach(), clips.grad, parameters, dict(head.named_buffers())


def worker(rank, folder, results):
    try:
        torch.set_num_threads(1)
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD_SIZE
        )
        found = {}
        for split in SPLITS:
            share = [part.split(split)[rank] for part in make_batch(sum(split))]
            found[split] = two_steps(make_head(), *share)
        bfloat16 = SyncBatchNorm1d(6)(make_batch(8)[0].split(4)[rank].bfloat16())
        found["bfloat16"] = bfloat16.detach()
        try:
            make_head()({"cls": make_batch(1)[0].split((1, 0))[rank]})
        except ValueError as error:
            found["lone clip"] = str(error)
        head = make_head().eval()
        if rank == 0:  # evaluation needs no partner
            found["eval"] = head({"cls": make_batch(1)[0]})["projection"].detach()
        torch.save(found, folder / f"{rank}.pt")
        results.put(None)
    except BaseException:
        results.put(traceback.format_exc())
        raise
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch_norm")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=worker, args=(rank, folder, results)) for rank in range(WORLD_SIZE)
    ]
    for process in processes:
        process.start()
    try:
        for _ in processes:
            error = results.get(timeout=120)
            assert error is None, error
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD_SIZE)]


def plain(head):
    """The same head with PyTorch's BatchNorm."""
    for index, norm in enumerate(head.norms):
        twin = nn.BatchNorm1d(norm.num_features).to(norm.weight.dtype)
        twin.load_state_dict(norm.state_dict())
        head.norms[index] = twin
    return head


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_two_processes_equal_one_with_the_whole_batch(of_two_processes, split):
    projections, gradients, parameters, statistics = zip(
        *(found[split] for found in of_two_processes), strict=True
    )
    expected = two_steps(plain(make_head()), *make_batch(sum(split)))
    torch.testing.assert_close(torch.cat(projections), expected[0])
    torch.testing.assert_close(torch.cat(gradients), expected[1], rtol=1e-7, atol=1e-9)
    for name, gradient in expected[2].items():  # each process has its share
        total = parameters[0][name] + parameters[1][name]
        torch.testing.assert_close(total, gradient, rtol=1e-7, atol=1e-7)
    for ours in statistics:
        torch.testing.assert_close(ours, expected[3])
    assert expected[3]["norms.0.num_batches_tracked"] == 2


def test_half_precision_is_normalised_in_single_precision(of_two_processes):
    ours = torch.cat([found["bfloat16"] for found in of_two_processes])
    assert ours.dtype == torch.bfloat16
    expected = nn.BatchNorm1d(6)(make_batch(8)[0].bfloat16())
    torch.testing.assert_close(ours, expected.detach(), atol=0.02, rtol=0)


def test_a_lone_clip_over_all_processes_is_refused_by_each(of_two_processes):
    for found in of_two_processes:
        assert "got 1 over 2 processes" in found["lone clip"]


def test_evaluation_needs_no_partner(of_two_processes):
    expected = plain(make_head()).eval()({"cls": make_batch(1)[0]})["projection"]
    torch.testing.assert_close(of_two_processes[0]["eval"], expected.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_process_has_pytorchs_batch_norm(dtype):
    batch = make_batch(7, dtype)
    ours, theirs = two_steps(make_head(dtype), *batch), two_steps(plain(make_head(dtype)), *batch)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    twin = nn.BatchNorm1d(5)
    assert list(twin.state_dict()) == list(SyncBatchNorm1d(5).state_dict())
    assert repr(twin) == repr(SyncBatchNorm1d(5)).removeprefix("Sync")


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(N, C\), got \(2, 5, 3\)"):
        SyncBatchNorm1d(5)(torch.zeros(2, 5, 3))
