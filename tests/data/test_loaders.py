import os
import subprocess
import sys
from itertools import islice

import pytest
import torch

from vimpac_ext.command_line import run_tool
from vimpac_ext.data.decode import VideoDecodeError
from vimpac_ext.data.loaders import UpdateSampler, evaluation_loader, train_loader


def sampler(**changes):
    options = {"num_items": 11, "batch_size": 4, "micro_batch_size": 2, "num_epochs": 3, "seed": 5}
    return UpdateSampler(**{**options, **changes})


def test_an_epoch_has_every_item_at_most_once_and_whole_batches_only():
    batches = list(sampler())
    assert len(batches) == len(sampler()) == 3 * 2 * 2
    for epoch in range(3):
        items = [index for batch in batches for e, index in batch if e == epoch]
        assert len(items) == len(set(items)) == 8
        assert set(items) <= set(range(11))


def test_epochs_and_seeds_differ():
    first, second = (batches for batches in (list(sampler()), list(sampler(seed=6))))
    assert first != second
    assert [i for b in first[:4] for _, i in b] != [i for b in first[4:8] for _, i in b]


@pytest.mark.parametrize("first_update", range(7))
def test_a_later_start_gives_what_an_unbroken_run_would_have_had(first_update):
    whole = list(sampler())
    resumed = sampler(first_update=first_update)
    assert list(resumed) == list(islice(whole, 2 * first_update, None))
    assert len(resumed) == len(whole) - 2 * first_update


def test_fewer_videos_than_a_batch_is_an_error():
    with pytest.raises(ValueError, match=r"BATCH_SIZE is 4 but there are only 3"):
        sampler(num_items=3)


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_batches_are_pinned_where_it_is_wanted_and_there_is_a_gpu(monkeypatch, wanted, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    loaders = [
        train_loader(range(11), sampler(), 0, pin_memory=wanted),
        evaluation_loader(range(11), 4, 0, pin_memory=wanted),
    ]
    assert [loader.pin_memory for loader in loaders] == [wanted and there] * 2


FAILS = """
import os, signal, sys
import torch
from vimpac_ext.data.loaders import {loader}

class Clips(torch.utils.data.Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, key):
        return {{"clips": torch.zeros(1), "worker": os.getpid()}}

held = []  # as a traceback or a notebook may

def main():
    arguments = [[[i] for i in range(1000)]] if "train" in "{loader}" else [1]
    batches = iter({loader}(Clips(), *arguments, num_workers=2, pin_memory=False))
    held.append(batches)
    workers = {{int(next(batches)["worker"]) for _ in range(2)}}
    for worker in workers:  # as a scheduler does, which signals every process
        os.system(f"kill -TERM {{worker}} && kill -INT {{worker}}")
    later = {{int(next(batches)["worker"]) for _ in range(40)}}
    assert workers == later and len(workers) == 2
    raise ValueError("loss is NaN")

if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {{error}}")
"""


@pytest.mark.parametrize("loader", ["train_loader", "evaluation_loader"])
def test_a_run_that_fails_ends_although_workers_ignore_signals(loader):
    """Something may hold the loader to the end, so that it is not shut down in order."""
    done = subprocess.run(
        [sys.executable, "-c", FAILS.format(loader=loader)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (1, "error: loss is NaN\n")


class BrokenVideos(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise VideoDecodeError("a.mp4: the video cannot be decoded")


def test_an_error_in_a_worker_is_one_line(capsys):
    loader = evaluation_loader(BrokenVideos(), 1, num_workers=1, pin_memory=False)
    with pytest.raises(SystemExit, match="1"):
        run_tool(lambda _: next(iter(loader)))
    assert capsys.readouterr().err == "error: a.mp4: the video cannot be decoded\n"
