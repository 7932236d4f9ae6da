import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from vimpac_ext.backbones import VimpacTransformer
from vimpac_ext.backbones.vimpac import resize_table
from vimpac_ext.engine.checkpoint import (
    Checkpointer,
    CheckpointError,
    find_checkpoint,
    initialise_moments,
    initialise_weights,
    load_model,
    newest_checkpoint,
    read_checkpoint,
)
from vimpac_ext.engine.optim import parameter_groups
from vimpac_ext.engine.original_adamw import OriginalAdamW
from vimpac_ext.engine.rng import set_rng_state
from vimpac_ext.tasks import FinetuneTask


class Backbone(nn.Module):
    """A table that depends on the input size, and a layer that does not."""

    def __init__(self, length=4, width=3):
        super().__init__()
        self.table = nn.Parameter(torch.randn(length, width))
        self.layer = nn.Linear(width, width)

    def adapt_state(self, state):
        if "table" not in state or state["table"].shape == self.table.shape:
            return state, []
        # Any rule will do: repeat rows.
        rows = torch.arange(len(self.table)) * len(state["table"]) // len(self.table)
        return {**state, "table": state["table"][rows]}, ["table"]


class Task(nn.Module):
    def __init__(self, length=4, width=3, head="token"):
        super().__init__()
        self.backbone = Backbone(length, width)
        self.heads = nn.ModuleDict({head: nn.Linear(width, 2)})


def trained(folder, **options):
    task = Task(**options)
    optimizer = torch.optim.AdamW(task.parameters())
    sum(p.square().sum() for p in task.parameters()).backward()
    optimizer.step()
    path = Checkpointer(folder, "A: 1\n", {"tokens": "a"}).save(task, optimizer, epoch=3, update=9)
    return task, optimizer, path


def test_a_checkpoint_restores_everything(tmp_path):
    task, optimizer, path = trained(tmp_path)
    assert path.name == "checkpoint_epoch_00003.pyth"
    expected_noise = torch.rand(3)
    other = Task()
    other_optimizer = torch.optim.AdamW(other.parameters())
    torch.rand(100)
    checkpoint = Checkpointer(tmp_path, "A: 1\n", {"tokens": "a"}).restore(other, other_optimizer)
    assert (checkpoint["epoch"], checkpoint["update"]) == (3, 9)
    set_rng_state(checkpoint["rng_states"][0])
    assert torch.equal(torch.rand(3), expected_noise)
    for name, value in task.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    for a, b in zip(optimizer.state.values(), other_optimizer.state.values(), strict=True):
        assert torch.equal(a["exp_avg"], b["exp_avg"])


def test_the_newest_checkpoint_is_by_number_and_half_written_files_do_not_count(tmp_path):
    for name in ("checkpoint_epoch_00009.pyth", "checkpoint_epoch_00010.pyth", "tmp.pyth"):
        (tmp_path / name).touch()
    assert newest_checkpoint(tmp_path).name == "checkpoint_epoch_00010.pyth"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_checkpoint(tmp_path / "nowhere")


def test_weights_only_report_tells_loaded_resized_skipped_and_missing(tmp_path):
    source, _, path = trained(tmp_path, length=4)
    target = Task(length=8, head="classification")
    untouched = target.heads["classification"].weight.detach().clone()
    report = initialise_weights(path, target, {"tokens": "a"})
    assert report.resized == ["backbone.table"]
    assert sorted(report.loaded) == ["backbone.layer.bias", "backbone.layer.weight"]
    assert sorted(report.skipped) == ["heads.token.bias", "heads.token.weight"]
    assert sorted(report.missing) == ["heads.classification.bias", "heads.classification.weight"]
    for name in [*report.resized, *report.skipped, *report.missing]:
        assert name in str(report)
    assert torch.equal(target.backbone.table[::2], source.backbone.table)
    assert torch.equal(target.heads["classification"].weight, untouched)


def test_moments_follow_their_parameters(tmp_path):
    _, optimizer, path = trained(tmp_path, length=4)
    target = Task(length=8)
    target_optimizer = torch.optim.AdamW(target.parameters())
    initialise_moments(path, target, target_optimizer)
    old = optimizer.state_dict()["state"][0]["exp_avg_sq"]
    assert torch.equal(target_optimizer.state[target.backbone.table]["exp_avg_sq"][::2], old)
    other = Task(head="classification")
    with pytest.raises(CheckpointError, match="other parameters"):
        initialise_moments(path, other, torch.optim.AdamW(other.parameters()))


@pytest.mark.parametrize("group", "abcde")
def test_moments_of_position_tables_are_interpolated_as_in_the_original(
    tmp_path, fixtures_dir, group
):
    data = np.load(fixtures_dir / "original" / "pos_interp.npz")
    tasks = []
    for when in ("before", "after"):
        grid = tuple(len(data[f"{group}/{axis}_pos_embedding/{when}"])
                     for axis in ("temporal", "height", "width"))  # fmt: skip
        backbone = VimpacTransformer(
            grid, vocab_size=4, embed_dim=8, num_layers=1, num_heads=1, layout="T"
        )
        tasks.append(FinetuneTask(backbone, {}, {}))
    source, target = tasks
    optimizer = OriginalAdamW(source.parameters())
    for parameter in source.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = optimizer.state[source.backbone.position.height]
    for name in ("exp_avg", "exp_avg_sq"):
        moments[name].copy_(torch.tensor(data[f"{group}/opt/{name}/before"]))
    path = Checkpointer(tmp_path, "", {}).save(source, optimizer, epoch=1, update=1)
    # The next stage may be trained with another optimizer and other groups.
    other = torch.optim.AdamW(parameter_groups(target, 0.1))
    initialise_moments(path, target, other)
    found = other.state[target.backbone.position.height]
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(found[name], torch.tensor(data[f"{group}/opt/{name}/after"]))
    assert found["step"] == 1
    assert torch.equal(
        other.state[target.backbone.token_embedding.weight]["exp_avg"],
        optimizer.state[source.backbone.token_embedding.weight]["exp_avg"],
    )


@pytest.mark.parametrize("position", ["hw_separation", "temporal_separation", "default"])
def test_moments_of_every_position_table_change_like_the_table(tmp_path, position):
    source, target = (
        FinetuneTask(
            VimpacTransformer(grid, vocab_size=4, embed_dim=8, num_layers=1, num_heads=1,
                              layout="T", position=position), {}, {},
        )
        for grid in ((2, 3, 4), (3, 5, 6))
    )  # fmt: skip
    optimizer = OriginalAdamW(source.parameters(), betas=(0.0, 0.0))
    for parameter in source.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()  # the moments are now the tables and their squares
    path = Checkpointer(tmp_path, "", {}).save(source, optimizer, epoch=1, update=1)
    other = OriginalAdamW(target.parameters())
    initialise_moments(path, target, other)
    for name, table in target.backbone.position.named_parameters():
        gradient = source.backbone.position.get_parameter(name).grad
        assert torch.equal(other.state[table]["exp_avg"], resize_table(gradient, len(table)))
        squares = resize_table(gradient.square(), len(table))
        assert torch.equal(other.state[table]["exp_avg_sq"], squares)


def test_moments_of_an_optimizer_without_any_are_refused(tmp_path):
    task = Task()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1, momentum=0.9)
    sum(p.square().sum() for p in task.parameters()).backward()
    optimizer.step()
    path = Checkpointer(tmp_path, "", {}).save(task, optimizer, epoch=1, update=1)
    target = Task()
    with pytest.raises(CheckpointError, match=r"without exp_avg; set TRAIN.CHECKPOINT_OPTIMIZER"):
        initialise_moments(path, target, torch.optim.AdamW(target.parameters()))


@pytest.mark.parametrize("use", ["load", "initialise", "restore"])
@pytest.mark.parametrize(
    ("width", "facts", "expected"),
    [
        (5, {"tokens": "a"}, r"another model: .*layer.weight has shape \(3, 3\).*\(5, 5\)"),
        (3, {"tokens": "b"}, "trained with tokens 'a', this run has 'b'"),
    ],
)
def test_another_model_or_other_tokens_are_refused(tmp_path, use, width, facts, expected):
    _, _, path = trained(tmp_path)
    target = Task(width=width)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    uses = {
        "load": lambda: load_model(path, target, facts),
        "initialise": lambda: initialise_weights(path, target, facts),
        "restore": lambda: Checkpointer(tmp_path, "", facts).restore(
            target, torch.optim.AdamW(target.parameters())
        ),
    }
    with pytest.raises(CheckpointError, match=expected):
        uses[use]()
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_malicious_or_damaged_file_is_refused_and_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    evil = tmp_path / "evil.pyth"
    torch.save({"format": Evil()}, evil)
    plain = tmp_path / "plain.pyth"
    plain.write_bytes(pickle.dumps(Evil(), protocol=2))
    _, _, path = trained(tmp_path)
    short = tmp_path / "short.pyth"
    short.write_bytes(path.read_bytes()[:1000])
    other = tmp_path / "other.pyth"
    torch.save({"epoch": 3}, other)
    empty = tmp_path / "empty.pyth"
    empty.touch()
    for bad in (evil, plain, short, other, empty):
        with pytest.raises(CheckpointError, match=bad.name):
            read_checkpoint(bad)
    assert not (tmp_path / "executed").exists()


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    task, optimizer, path = trained(tmp_path)
    before = path.read_bytes()

    def fails(checkpoint, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(CheckpointError, match="cannot write .*disk full"):
        Checkpointer(tmp_path, "", {}).save(task, optimizer, epoch=3, update=9)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
