"""Processes that each hold a part of every weight do what one process with all of them does."""

import signal

import pytest
import torch
import torch.distributed as dist
import yaml
from processes import in_processes
from test_parallel import batches, finetune, pretrain_task
from test_resume import BASE, lines, require_same_run, start, weights
from tiny_project import make_tiny_project
from torch import nn

from vimpac_ext.config import ConfigError
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.checkpoint import newest_checkpoint, read_checkpoint
from vimpac_ext.engine.ema import Ema
from vimpac_ext.engine.original_adamw import OriginalAdamW
from vimpac_ext.engine.parallel import GlobalMasker, Replica
from vimpac_ext.engine.sharding import clip_gradients, shard, whole, whole_state

CLOSE = ("loss", "classification_loss", "grad_norm")  # the rest of a line is the same
OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.01, fused=True),
    "original": lambda parameters: OriginalAdamW(parameters, 0.01, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, nesterov=True),
}


@pytest.fixture
def project(tmp_path):
    return make_tiny_project(tmp_path)


def three_updates(losses, norm, method, precision="fp32", rank=0, world=1):
    """Gradient norms, weights, averages and moments after clipped updates of two micro-batches."""
    task = pretrain_task(losses, norm)
    if norm == "bn":  # its input hardly varies here, which makes much of float32 rounding
        task = task.double()
    task.masker = GlobalMasker(task.masker, clips_per_video=2)
    optimizer = OPTIMIZERS[method](task.parameters())
    if world > 1:
        task.backbone.activation_checkpointing = norm == "ln"
        shard(task, optimizer, precision, torch.device("cpu"))
    ema, replica = Ema(task, 0.9), Replica(task)
    part = 4 // world
    norms = []
    for _ in range(3):
        optimizer.zero_grad()
        for step, tokens in enumerate(batches()):
            generator = torch.Generator().manual_seed(step)
            own = {"clips": tokens[rank * part : (rank + 1) * part]}
            with replica.exchange(step == 1):
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    values = replica(own, generator)
                (values["loss"] / 2).backward()
        norms.append(clip_gradients(task.parameters(), 0.5))
        optimizer.step()
        ema.update(task)
    return {
        "norms": {str(update): norm for update, norm in enumerate(norms)},
        "weights": whole(task).state_dict(),
        "averages": whole_state(ema.state),
        "moments": {
            f"{number} {name}": value
            for number, state in whole_state(optimizer.state_dict())["state"].items()
            for name, value in state.items()
        },
    }


def my_three_updates(*arguments):
    return three_updates(*arguments, rank=dist.get_rank(), world=dist.get_world_size())


@pytest.mark.parametrize(
    ("losses", "norm", "method"),
    [("token", "ln", "adamw"), ("contrast", "bn", "original"), ("token contrast", "bn", "sgd")],
)
def test_updates_are_those_of_one_process(losses, norm, method):
    """25 rows of the tied embedding are not divisible by two either."""
    expected = three_updates(losses, norm, method)
    main, other = in_processes(2, my_three_updates, losses, norm, method)
    for kind, values in expected.items():
        assert main[kind].keys() == values.keys()
        for name, value in values.items():
            torch.testing.assert_close(main[kind][name], value, rtol=1e-4, atol=5e-6, msg=name)
    for name, value in main["weights"].items():
        assert torch.equal(other["weights"][name], value)
    for name, value in main["norms"].items():
        assert torch.equal(other["norms"][name], value)
    # Only the main process has the state that goes into a checkpoint.
    assert other["averages"]["backbone.cls_token"] is None


def test_bfloat16_layers_keep_float32_parts():
    one, two = (
        three_updates("token", "ln", "sgd", "bf16"),
        in_processes(2, my_three_updates, "token", "ln", "sgd", "bf16")[0],
    )
    for name, norm in one["norms"].items():
        assert two["norms"][name].item() == pytest.approx(norm.item(), rel=0.02)
    assert {value.dtype for value in two["weights"].values()} == {torch.float32}


def observed_update():
    """What a process keeps, what its layers see, and which gradients there are when."""
    task = pretrain_task("token contrast", "ln")
    numbers = {name: p.numel() for name, p in task.named_parameters()}
    shard(task, OPTIMIZERS["sgd"](task.parameters()), "bf16", torch.device("cpu"))
    parts = {name: p.to_local().numel() for name, p in task.named_parameters()}
    seen = {}

    def look(module, arguments):
        tied = task.heads["token"].token_embedding.weight
        seen["layer"] = module.expand.weight.shape, module.expand.weight.dtype
        seen["tied"] = tied.shape, tied.dtype, type(tied)

    task.backbone.layers[0].mlp.register_forward_pre_hook(look)
    replica = Replica(task)
    with_gradient = []
    for step, tokens in enumerate(batches()):
        own = {"clips": tokens[2 * dist.get_rank() :][:2]}
        with replica.exchange(step == 1):
            with torch.autocast("cpu", torch.bfloat16):
                loss = replica(own, torch.Generator().manual_seed(step))["loss"]
            loss.backward()
        with_gradient.append([p.grad.dtype for p in task.parameters() if p.grad is not None])
    return numbers, parts, seen, with_gradient


def test_each_process_keeps_a_part_and_exchanges_gradients_once_an_update():
    results = in_processes(2, observed_update)
    numbers = results[0][0]
    for name, number in numbers.items():
        assert sum(parts[name] for _, parts, *_ in results) == number
    for _, parts, seen, (first, second) in results:
        assert sum(parts.values()) < 0.6 * sum(numbers.values())
        assert seen["layer"] == ((64, 16), torch.bfloat16)
        assert seen["tied"] == ((25, 16), torch.float32, nn.Parameter)
        assert first == []  # kept whole beside the parts, which have none before the exchange
        assert second == [torch.float32] * len(numbers)


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(project, tmp_path):
    more = ["TRAIN.PARALLEL", "fsdp", "TRAIN.MICRO_BATCH_SIZE", "2", "TRAIN.EMA_DECAY", "0.9"]
    overrides = [*BASE, *more, "TRAIN.CHECKPOINT_PERIOD_STEPS", "3", "OUTPUT_DIR"]
    config = project / "pretrain.yaml"
    ended = start(config, [*overrides, str(tmp_path / "whole")], 2)
    assert [process.code for process in ended] == [0, 0], ended
    start(config, [*overrides, str(tmp_path / "broken")], 2, 1, signal.SIGKILL, 5)
    start(config, [*overrides, str(tmp_path / "broken")], 2, 0, signal.SIGKILL, -8)
    ended = start(config, [*overrides, str(tmp_path / "broken")], 2)
    assert [process.code for process in ended] == [0, 0], ended
    require_same_run(tmp_path / "broken", tmp_path / "whole")
    whole_run, broken = (
        read_checkpoint(newest_checkpoint(tmp_path / name / "checkpoints"))
        for name in ("whole", "broken")
    )
    for name, value in whole_run["ema_state"].items():
        assert torch.equal(value, broken["ema_state"][name]), name
    assert whole_run["optimizer_names"] == broken["optimizer_names"]


@pytest.mark.parametrize("sharded_first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_one_process_and_shards_continue_each_other(project, tmp_path, sharded_first):
    # Adam and BatchNorm would blow up the rounding of what is almost zero.
    overrides = [*BASE, "SOLVER.OPTIMIZING_METHOD", "sgd", "BACKBONE.dropout", "0.0"]
    overrides += ["HEADS.contrast.norm", "ln", "TRAIN.EMA_DECAY", "0.9", "OUTPUT_DIR"]
    config = project / "pretrain.yaml"
    start(config, [*overrides, str(tmp_path / "whole")])
    broken = [*overrides, str(tmp_path / "broken")]
    for sharded, moment in ((sharded_first, 4), (not sharded_first, None)):
        size, parallel = (2, "fsdp") if sharded else (1, "ddp")
        victim = None if moment is None else 0
        more = ["TRAIN.PARALLEL", parallel]
        start(config, [*broken, *more], size, victim, signal.SIGTERM, moment)
    found, expected = lines(tmp_path / "broken"), lines(tmp_path / "whole")
    assert len(found) == len(expected) == 12
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    found, expected = weights(tmp_path / "broken"), weights(tmp_path / "whole")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_fine_tuning_with_evaluation_is_that_of_one_process(project, tmp_path):
    """From the weights of another run; nine test videos, of which the processes have 5 and 4."""
    run(prepare(project / "pretrain.yaml"))
    with (tmp_path / "data/test.csv").open("a") as file:
        file.write("clips/lost.mp4 0\n")
    overrides = ["DATA.ON_BAD_VIDEO", "count_wrong", "TRAIN.EVAL_PERIOD", "1"]
    overrides += ["TRAIN.EMA_DECAY", "0.5", "BACKBONE.dropout", "0.0", "OUTPUT_DIR"]
    config = project / "finetune.yaml"
    expected = finetune(config, [*overrides, str(tmp_path / "one")])
    words = [*overrides, str(tmp_path / "two"), "TRAIN.PARALLEL", "fsdp"]
    assert in_processes(2, finetune, config, words) == [expected, expected]
    for kind in ("train_iter", "val_epoch"):
        found, wanted = (lines(tmp_path / name, kind) for name in ("two", "one"))
        assert len(found) == len(wanted) == {"train_iter": 4, "val_epoch": 2}[kind]
        for one, two in zip(found, wanted, strict=True):
            assert one.keys() == two.keys()
            for key, value in two.items():
                wanted_value = pytest.approx(value, rel=1e-3) if key in CLOSE else value
                assert one[key] == wanted_value, (key, one, two)


def pretrain(path, overrides):
    run(prepare(path, overrides))


@pytest.mark.slow
def test_pre_training_with_two_passes_and_a_monitor_is_that_of_one_process(project, tmp_path):
    """Layers run twice before one backward pass; the monitor is the main process's alone."""
    monitor = {
        "ENABLE": True,
        "K": 3,
        **{
            part.upper(): {
                "DATASET": {"NAME": "PathLabelList", "split": part},
                "TOKEN_STORE": str(tmp_path / f"tokens_{part}"),
            }
            for part in ("train", "test")
        },
    }
    config = yaml.safe_load((project / "pretrain.yaml").read_text())
    config["TASK"] = {"NAME": "PretrainTask", "unmasked_heads": ["contrast"]}
    config["TRAIN"] |= {"EVAL_PERIOD": 1, "MICRO_BATCH_SIZE": 2}
    (project / "monitored.yaml").write_text(yaml.safe_dump({**config, "KNN": monitor}))
    words = ["BACKBONE.dropout", "0.0", "HEADS.contrast.norm", "ln", "OUTPUT_DIR"]
    pretrain(project / "monitored.yaml", [*words, str(tmp_path / "one")])
    words = [*words, str(tmp_path / "two"), "TRAIN.PARALLEL", "fsdp"]
    in_processes(2, pretrain, project / "monitored.yaml", words)
    found, expected = (lines(tmp_path / name) for name in ("two", "one"))
    assert len(found) == len(expected) == 4
    for one, two in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    found, expected = (lines(tmp_path / name, "knn_epoch") for name in ("two", "one"))
    for one, two in zip(found, expected, strict=True):
        # Rounding may turn over one of the 8 queries, whose neighbours are nearly as near.
        assert one["top1_err"] == pytest.approx(two["top1_err"], abs=100 / 8)


def test_float16_is_refused(project):
    words = ["TRAIN.PARALLEL", "fsdp", "TRAIN.PRECISION", "fp16"]
    with pytest.raises(ConfigError, match="TRAIN.PRECISION in the command line must be fp32 or bf"):
        prepare(project / "pretrain.yaml", words)
