"""AUG.NUM_SAMPLE: several clips of each video in a batch; batches and epochs count videos."""

import copy

import pytest
import torch
from processes import in_processes
from test_pixel_runs import FRAMES, NUM_CLASSES, config, videos  # noqa: F401  (a fixture)
from test_resume import lines, require_same_run, start
from tiny_project import make_tiny_project

from vimpac_ext.backbones.timm import TimmFrames
from vimpac_ext.config import ConfigError
from vimpac_ext.data.annotations import PathLabelList
from vimpac_ext.data.loaders import train_loader
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.assembly import build_task, build_train_clips
from vimpac_ext.engine.training import update_sampler
from vimpac_ext.heads import ClassificationHead
from vimpac_ext.losses import CrossEntropyLoss
from vimpac_ext.tasks import FinetuneTask


def batches(videos, folder, num_workers, first_update=0, **aug):  # noqa: F811
    """All batches of two epochs of four videos, from an update on."""
    loaded = config(videos, folder, FRAMES, AUG=aug, SOLVER={"MAX_EPOCH": 2})
    records = PathLabelList(str(videos), "good").records
    clips = build_train_clips(loaded.cfg, build_task(loaded.cfg), records)
    sampler = update_sampler(loaded.cfg, len(clips), first_update)
    return list(train_loader(clips, sampler, num_workers, pin_memory=False))


@pytest.mark.parametrize("random_views", [True, False])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_batch_has_different_clips_of_each_video(videos, tmp_path, random_views):  # noqa: F811
    aug = {"ENABLE": random_views, "NUM_SAMPLE": 3}
    found = batches(videos, tmp_path, 0, **aug)
    once = batches(videos, tmp_path, 0, ENABLE=random_views)
    assert len(found) == len(once) == 4  # two epochs of two updates of two videos
    seen = [batch["video_index"].tolist() for batch in found]
    assert seen == [batch["video_index"].tolist() for batch in once]
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == [0, 1, 2, 3]
    for batch, single in zip(found, once, strict=True):
        assert batch["clips"].shape == (2, 3, 3, 4, 32, 32)
        assert single["clips"].shape == (2, 1, 3, 4, 32, 32)
        assert batch["label"].tolist() == [i % NUM_CLASSES for i in batch["video_index"].tolist()]
        if random_views:
            for clips in batch["clips"]:
                assert len({clip.numpy().tobytes() for clip in clips}) == 3
    if not random_views:  # a video has few starts, and some are drawn twice
        counts = [
            len({clip.numpy().tobytes() for clip in clips})
            for batch in found
            for clips in batch["clips"]
        ]
        assert sum(counts) > 2 * len(counts)
    for again, skipped in (
        (batches(videos, tmp_path, 2, **aug), 0),
        (batches(videos, tmp_path, 0, first_update=3, **aug), 3),
    ):
        assert len(again) == len(found) - skipped
        for one, other in zip(found[skipped:], again, strict=True):
            assert torch.equal(one["clips"], other["clips"])
            assert torch.equal(one["video_index"], other["video_index"])


def test_the_step_is_that_of_a_batch_of_all_clips():
    torch.manual_seed(0)
    backbone = TimmFrames((2, 32, 32), "resnet10t")
    heads = {"classification": ClassificationHead(backbone.embed_dim, num_classes=5)}
    task = FinetuneTask(backbone, heads, {"classification": CrossEntropyLoss()})
    other = copy.deepcopy(task)
    clips, labels = torch.rand(2, 3, 3, 2, 32, 32), torch.tensor([4, 1])
    repeated = task.training_step({"clips": clips, "label": labels}, torch.Generator())
    flat = {"clips": clips.reshape(6, 1, 3, 2, 32, 32), "label": torch.tensor([4, 4, 4, 1, 1, 1])}
    expected = other.training_step(flat, torch.Generator())
    assert repeated.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(repeated[name], value), name


def test_mixing_wants_two_videos_in_a_micro_batch(videos, tmp_path):  # noqa: F811
    mixing = {"TASK": {"NAME": "FinetuneTask", "mixup": 0.8}, "AUG": {"NUM_SAMPLE": 2}}
    alone = config(videos, tmp_path, FRAMES, TRAIN={"MICRO_BATCH_SIZE": 1}, **mixing)
    with pytest.raises(ConfigError, match=r"MICRO_BATCH_SIZE 1 .* one video\. .*at least 2"):
        run(alone)
    assert not (tmp_path / "output/checkpoints").exists()
    (code, message), (other, _) = in_processes(
        2, error_of, config(videos, tmp_path, FRAMES, **mixing)
    )
    assert code == other == "ConfigError"
    assert "TRAIN.BATCH_SIZE 2 gives each of 2 process(es) one video" in message
    training_clips(config(videos, tmp_path, FRAMES, **mixing))


def training_clips(loaded):
    records = PathLabelList(loaded.cfg.DATA.PATH_TO_DATA_DIR, "good").records
    return build_train_clips(loaded.cfg, build_task(loaded.cfg), records)


def error_of(loaded):
    with pytest.raises(ValueError, match=".") as error:
        training_clips(loaded)
    return type(error.value).__name__, str(error.value)


def test_a_pair_of_clips_is_not_repeated(tmp_path):
    config_file = make_tiny_project(tmp_path) / "pretrain.yaml"
    with pytest.raises(ValueError, match=r"AUG\.NUM_SAMPLE is 2, but .*'pair'\); set it to 1"):
        run(prepare(config_file, ["AUG.NUM_SAMPLE", "2"]))


@pytest.mark.slow
def test_tokens_are_repeated_too_and_a_killed_run_continues_bit_for_bit(tmp_path):
    config_file = make_tiny_project(tmp_path) / "finetune.yaml"
    base = ["TRAIN.CHECKPOINT_FILE_PATH", "", "SOLVER.MAX_EPOCH", "6", "TEST.ENABLE", "False"]
    base = [*base, "TRAIN.CHECKPOINT_PERIOD_STEPS", "3", "AUG.NUM_SAMPLE"]
    run(prepare(config_file, [*base, "2", "OUTPUT_DIR", str(tmp_path / "whole")]))
    start(config_file, [*base, "2", "OUTPUT_DIR", str(tmp_path / "broken")], 1, 0, 9, 7)
    start(config_file, [*base, "2", "OUTPUT_DIR", str(tmp_path / "broken")])
    require_same_run(tmp_path / "broken", tmp_path / "whole")
    run(prepare(config_file, [*base, "1", "OUTPUT_DIR", str(tmp_path / "single")]))
    assert len(lines(tmp_path / "single")) == len(lines(tmp_path / "whole"))  # updates
    assert lines(tmp_path / "single")[-1]["loss"] != lines(tmp_path / "whole")[-1]["loss"]
