import contextlib
import itertools
import json

import pytest
import torch
from torch import nn

from vimpac_ext.data.loaders import UpdateSampler, train_loader
from vimpac_ext.engine.checkpoint import Checkpointer
from vimpac_ext.engine.events import EventLog
from vimpac_ext.engine.trainer import Trainer, TrainerOptions
from vimpac_ext.engine.window import NonFiniteLossError, Window

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _close_logs():
    yield
    open_logs.close()


open_logs = contextlib.ExitStack()


class Points(torch.utils.data.Dataset):
    """(x, 3x - 1) pairs; an item is a function of its key."""

    def __len__(self):
        return 12

    def __getitem__(self, key):
        _, index = key
        return {"x": torch.tensor([index / 10.0]), "video_index": index}


class LineTask(nn.Module):
    """A task with dropout (global random state) and noise (the step's generator)."""

    def __init__(self, poison=None):
        super().__init__()
        self.line = nn.Linear(1, 1)
        self.dropout = nn.Dropout(0.3)
        self.poison = poison

    def training_step(self, batch, generator):
        x = batch["x"]
        noise = 0.01 * torch.rand(x.shape, generator=generator)
        loss = (self.line(self.dropout(x)) - (3 * x - 1) + noise).square().mean()
        if self.poison is not None and self.poison in batch["video_index"]:
            loss = loss * float("nan")
        return {"loss": loss, "twice": 2 * loss.detach()}


def make(
    folder,
    *,
    epochs=3,
    micro=4,
    batch=4,
    task=None,
    log_period=1,
    evaluate=None,
    clip=0.0,
    precision="fp32",
    **more,
):
    torch.manual_seed(0)
    task = task or LineTask()
    optimizer = torch.optim.AdamW(task.parameters(), lr=0.1)
    checkpointer = Checkpointer(folder, "LOG_PERIOD: 1\n", {"tokens": "a"})
    checkpoint = checkpointer.restore(task, optimizer)
    first = checkpoint["update"] if checkpoint else 0
    sampler = UpdateSampler(12, batch, micro, epochs, seed=1, first_update=first)
    events = open_logs.enter_context(EventLog(folder, tensorboard=False, first_update=first + 1))
    options = TrainerOptions(
        clip_grad_norm=clip,
        precision=precision,
        log_period=log_period,
        checkpoint_period=1,
        eval_period=2,
        seed=4,
        **more,
    )
    trainer = Trainer(
        task,
        sampler,
        train_loader(Points(), sampler, num_workers=0, pin_memory=False),
        optimizer,
        lambda update: 0.1 / (1 + update),
        checkpointer,
        events,
        CPU,
        options,
        evaluate,
        name_video="video {}".format,
    )
    if checkpoint:
        trainer.restore(checkpoint)
    return trainer


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["update"], line["loss"]) for line in lines]


def test_resumed_training_equals_an_unbroken_one_bit_for_bit(tmp_path):
    whole = make(tmp_path / "whole")
    whole.train()
    make(tmp_path / "parts", epochs=3)  # writes nothing by being built
    # Stop after the first epoch's checkpoint, in the middle of the second epoch.
    broken = make(tmp_path / "parts")
    original = broken._update
    calls = itertools.count()

    def dies(*arguments):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    broken._update = dies
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = make(tmp_path / "parts")
    assert resumed.sampler.first_update == 3
    resumed.train()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for a, b in zip(whole.task.parameters(), resumed.task.parameters(), strict=True):
        assert torch.equal(a, b)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, monkeypatch):
    def gradient(micro):
        trainer = make(tmp_path / str(micro), micro=micro, epochs=1)
        trainer.task.dropout.p = 0.0
        seen = []
        trainer.optimizer.step = lambda: seen.append(trainer.task.line.weight.grad.clone())
        trainer.train()
        return torch.stack(seen)

    # The same (no) noise for both: one draw a micro-step could not be.
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.zeros(shape))
    torch.testing.assert_close(gradient(4), gradient(2))


def test_gradients_are_clipped_and_their_norm_is_logged(tmp_path):
    trainer = make(tmp_path, epochs=1, clip=1e-3)
    norms = []
    trainer.optimizer.step = lambda: norms.append(
        nn.utils.get_total_norm([p.grad for p in trainer.task.parameters()]).item()
    )
    trainer.train()
    assert norms == pytest.approx([1e-3] * 3, rel=1e-2)
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["grad_norm"] > 0.1
    assert first["twice"] == pytest.approx(2 * first["loss"], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_videos(tmp_path):
    trainer = make(tmp_path, task=LineTask(poison=7), epochs=1)
    with pytest.raises(NonFiniteLossError, match=r"is nan; its videos are .*video 7[,.]"):
        trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.task.parameters())
    assert not list(tmp_path.glob("checkpoints/*"))


def test_evaluation_comes_every_second_epoch_and_at_the_end(tmp_path):
    seen = []
    make(tmp_path, epochs=3, evaluate=seen.append).train()
    assert seen == [6, 9]
    assert len(list(tmp_path.glob("checkpoints/*.pyth"))) == 3


def test_the_average_of_the_weights_is_the_recursion_by_hand(tmp_path):
    trainer = make(tmp_path, epochs=2, ema_decay=0.75)
    seen = [trainer.task.line.weight.item()]
    update = trainer.optimizer.step

    def step(*arguments, **options):
        update(*arguments, **options)
        seen.append(trainer.task.line.weight.item())

    trainer.optimizer.step = step
    trainer.train()
    average = seen[0]
    for value in seen[1:]:
        average = 0.75 * average + 0.25 * value
    assert trainer.ema.state["line.weight"].item() == pytest.approx(average, rel=1e-6)


def test_evaluation_sees_the_averaged_weights_and_training_its_own(tmp_path):
    seen = []
    trainer = make(tmp_path, epochs=2, ema_decay=0.9, evaluate=lambda update: see())

    def see():
        seen.append((trainer.task.line.weight.item(), trainer.ema.state["line.weight"].item()))
        torch.rand(1000)  # drawing numbers here changes nothing

    trainer.train()
    assert [a == b for a, b in seen] == [True]
    assert trainer.task.line.weight.item() != seen[0][0]
    make(tmp_path / "plain", epochs=2).train()
    assert losses(tmp_path) == losses(tmp_path / "plain")


def test_groups_have_rates_of_their_own(tmp_path):
    trainer = make(tmp_path, epochs=1)
    trainer.optimizer.param_groups[0]["lr_scale"] = 0.5
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.1 / 3)


def test_float16_skips_updates_that_overflow_and_then_learns(tmp_path):
    trainer = make(tmp_path, epochs=3, precision="fp16")
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0**20})
    weights = []
    update = trainer._update

    def update_and_look(*arguments):
        scalars = update(*arguments)
        weights.append(trainer.task.line.weight.item())
        return scalars

    trainer._update = update_and_look
    trainer.train()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    scales = [json.loads(line)["loss_scale"] for line in lines]
    assert scales[0] == pytest.approx(2.0**19, rel=1e-4)  # halved: the first update was skipped
    assert scales == sorted(scales, reverse=True)
    assert len(set(weights)) > 1


class HugeGradient(LineTask):
    """A finite loss whose gradient is not."""

    def training_step(self, batch, generator):
        scalars = super().training_step(batch, generator)
        zero = (self.line.weight - self.line.weight.detach()).square().sum()
        return {**scalars, "loss": scalars["loss"] + zero.sqrt()}


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    trainer = make(tmp_path / "fp32", task=HugeGradient())
    with pytest.raises(NonFiniteLossError, match="gradient norm of update 1 is nan"):
        trainer.train()
    assert trainer.task.line.weight.isfinite().all()
    trainer = make(tmp_path / "fp16", task=HugeGradient(), precision="fp16", epochs=20)
    with pytest.raises(NonFiniteLossError, match=r"overflow at every loss scale.*bf16 or fp32"):
        trainer.train()


def test_an_exploding_loss_stops_the_run(tmp_path):
    trainer = make(tmp_path, explosion_factor=2.0)
    trainer.schedule = lambda update: 100.0
    with pytest.raises(NonFiniteLossError, match=r"loss of update \d is .*FACTOR 2\); its videos"):
        trainer.train()


def test_an_explosion_right_after_a_resume_is_told_too(tmp_path):
    make(tmp_path, epochs=1).train()
    resumed = make(tmp_path, epochs=2, explosion_factor=2.0)
    with torch.no_grad():
        resumed.task.line.weight.fill_(1e3)
    with pytest.raises(NonFiniteLossError, match=r"loss of update 4 is .*FACTOR 2\); its videos"):
        resumed.train()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_number_is_found_later_by_who_looks_later(value):
    """As on a GPU, which is asked at log lines only: the update and the videos are its own."""
    for what in ("loss", "gradient norm"):
        window = Window("video {}".format)
        for update, videos in zip((6, 7, 8), ([1, 2], [3, 4], [5, 6]), strict=True):
            is_bad = update == 7
            window.add_loss(torch.tensor(value if is_bad and what == "loss" else 1.0), videos)
            window.add_norm(torch.tensor(value if is_bad else 1.0))
        expected = rf"the {what} of update 8 is {value}; its videos are video 3, video 4\."
        with pytest.raises(NonFiniteLossError, match=expected):
            window.require_finite(8)


def test_waiting_for_data_is_told_apart_from_the_step(tmp_path, monkeypatch):
    """With a clock that items and steps move: 4 times 2 and 2 times 3 seconds in an update."""
    seconds = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: seconds[0])

    def slowed(function, cost):
        def call(*arguments):
            seconds[0] += cost
            return function(*arguments)

        return call

    monkeypatch.setattr(Points, "__getitem__", slowed(Points.__getitem__, 2))
    monkeypatch.setattr(LineTask, "training_step", slowed(LineTask.training_step, 3))
    make(tmp_path, epochs=2, micro=2, log_period=2).train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [2, 3, 4, 6]
    for line in lines:
        assert (line["dt"], line["dt_data"], line["dt_net"]) == (14, 8, 6)
        assert line["videos_per_second"] == pytest.approx(4 / 14, rel=1e-4)
