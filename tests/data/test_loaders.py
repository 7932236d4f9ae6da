import os
import subprocess
import sys
from itertools import islice

import pytest
import torch

from vimpac_ext.command_line import run_tool
from vimpac_ext.data.bad_videos import BadVideo, read_bad_videos
from vimpac_ext.data.decode import VideoDecodeError
from vimpac_ext.data.loaders import UpdateSampler, evaluation_loader, train_loader
from vimpac_ext.structures import VideoRecord


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
from vimpac_ext.data.loaders import UpdateSampler, {loader}

class Clips(torch.utils.data.Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, key):
        return {{"clips": torch.zeros(1), "worker": os.getpid()}}

held = []  # as a traceback or a notebook may

def main():
    arguments = [UpdateSampler(1000, 1, 1, 1, seed=0)] if "train" in "{loader}" else [1]
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


class MarkedVideos(torch.utils.data.Dataset):
    """Videos of which some are marked as bad; the label of a clip is told by what is in it."""

    def __init__(self, number, bad):
        self.records = [VideoRecord(f"{i}.mp4", f"id {i}", 100 + i) for i in range(number)]
        self.bad = set(bad)

    def __len__(self):
        return len(self.records)

    def __getitem__(self, key):
        epoch, index = key
        error = f"cannot decode {index}.mp4" if index in self.bad else ""
        clips = torch.tensor([epoch, torch.nan if error else index])
        return {"clips": clips, "label": 100 + index, "video_index": index, "error": error}


def batches_of(bad, num_workers=0, file=None, **changes):
    """Epoch, index and label of each place of every batch."""
    videos = MarkedVideos(11, bad)
    loader = train_loader(videos, sampler(**changes), num_workers, False, file)
    found = []
    for batch in loader:
        assert set(batch) == {"clips", "label", "video_index"}
        assert torch.equal(batch["clips"][:, 1], batch["video_index"].float())
        epochs, places = batch["clips"][:, 0].tolist(), batch["video_index"].tolist()
        found.append(list(zip(epochs, places, batch["label"].tolist(), strict=True)))
    return found


@pytest.mark.parametrize("position", range(4))
def test_another_video_takes_the_place_of_a_bad_one(position, tmp_path, caplog):
    order = [key for batch in sampler() for key in batch]
    bad = order[position][1]
    found = [place for batch in batches_of([bad], file=tmp_path / "bad.jsonl") for place in batch]
    assert len(found) == len(order)
    for (epoch, index), (of_epoch, other, label) in zip(order, found, strict=True):
        assert (of_epoch, label) == (epoch, 100 + other)
        assert other == index if index != bad else other != bad
    expected = BadVideo(f"id {bad}", f"{bad}.mp4", f"cannot decode {bad}.mp4")
    assert read_bad_videos(tmp_path / "bad.jsonl") == {f"id {bad}": expected}
    message = f"another video takes the place of one that is bad: cannot decode {bad}.mp4"
    assert caplog.messages == [message]  # although it is drawn again in later epochs


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_what_takes_its_place_depends_on_seed_and_place_alone():
    bad = range(0, 11, 2)
    whole = batches_of(bad)
    assert all(len(batch) == 2 for batch in whole)
    assert batches_of(bad, num_workers=2) == whole
    assert batches_of(bad, first_update=3) == whole[6:]
    parts = [batches_of(bad, rank=rank, world_size=2) for rank in (0, 1)]
    assert [one + other for one, other in zip(*parts, strict=True)] == whole
    # Not always the same one, nor the same in each epoch.
    order = [key for batch in sampler() for key in batch]
    found = [place for batch in whole for place in batch]
    chosen = {key: place[1] for key, place in zip(order, found, strict=True) if key[1] in bad}
    assert set(chosen.values()) == {1, 3, 5, 7, 9}
    of_each = {i: {j for (_, index), j in chosen.items() if index == i} for i in bad}
    assert any(len(others) > 1 for others in of_each.values())


@pytest.mark.parametrize("number", [1, 6, 30])
def test_a_data_set_of_bad_videos_is_an_error(number, tmp_path):
    file = tmp_path / "bad.jsonl"
    keys = sampler(num_items=number, batch_size=1, micro_batch_size=1)
    loader = train_loader(MarkedVideos(number, range(number)), keys, 0, False, file)
    tried = min(number, 11)
    (_, first) = next(iter(keys))[0]
    message = f"none of {tried} videos .* can be decoded; the first: cannot decode {first}.mp4"
    with pytest.raises(VideoDecodeError, match=message):
        next(iter(loader))
    assert len(read_bad_videos(file)) == tried
