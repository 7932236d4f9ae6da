"""Two processes do what one does."""

import json

import pytest
import torch
import torch.distributed as dist
from processes import in_processes
from tiny_project import make_tiny_project
from torch import nn

from vimpac_ext.backbones import VimpacTransformer
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.parallel import GlobalMasker, GlobalNoise, Replica
from vimpac_ext.heads import MaskedTokenHead, ProjectionHead
from vimpac_ext.losses import InfoNCELoss, MaskedTokenLoss
from vimpac_ext.maskers import BlockMasker, TubeMasker, UniformMasker, corrupt
from vimpac_ext.structures import SpecialTokens, TokenGrid
from vimpac_ext.tasks import PretrainTask

GRID = TokenGrid(3, 4, 4)
VOCABULARY = 20


def pretrain_task(losses, norm="bn"):
    torch.manual_seed(0)
    backbone = VimpacTransformer(
        GRID, VOCABULARY, embed_dim=16, num_heads=2, num_layers=1, layout="T,H|W", dropout=0.0
    )
    heads, terms = {}, {}
    if "token" in losses:
        heads["token"] = MaskedTokenHead(16, backbone.token_embedding)
        terms["token"] = MaskedTokenLoss()
    if "contrast" in losses:
        heads["contrast"] = ProjectionHead(16, hidden_dim=8, output_dim=4, norm=norm)
        terms["contrast"] = InfoNCELoss()
    masker = BlockMasker(num_blocks=3)
    return PretrainTask(backbone, heads, terms, vocab_size=VOCABULARY, masker=masker)


def batches():
    """Two micro-batches of four videos, the last two of them almost all padding."""
    tokens = torch.randint(VOCABULARY, (2, 4, 2, *GRID), generator=torch.Generator().manual_seed(1))
    tokens[:, 2:, :, 1:] = SpecialTokens(VOCABULARY).pad
    tokens[:, 3, :, :, 1:] = SpecialTokens(VOCABULARY).pad
    return tokens


def gradients(losses, norm, rank=0, world=1):
    """Gradients and mean scalars of two accumulated micro-batches; this process's part of them."""
    task = pretrain_task(losses, norm)
    if norm == "bn":  # its input hardly varies here, which makes much of float32 rounding
        task = task.double()
    task.masker = GlobalMasker(task.masker, clips_per_video=2)
    replica = Replica(task)
    part = 4 // world
    scalars = {}
    for step, tokens in enumerate(batches()):
        generator = torch.Generator().manual_seed(step)
        own = {"clips": tokens[rank * part : (rank + 1) * part]}
        with replica.exchange(step == 1):
            values = replica(own, generator)
            (values["loss"] / 2).backward()
        for name, value in values.items():
            scalars[name] = scalars.get(name, 0.0) + value.detach() / 2
    return {n: p.grad for n, p in task.named_parameters()}, scalars


def my_gradients(losses, norm):
    return gradients(losses, norm, dist.get_rank(), dist.get_world_size())


@pytest.mark.parametrize(
    ("losses", "norm"),
    [("token", "bn"), ("contrast", "ln"), ("contrast", "bn"), ("token contrast", "bn")],
)
def test_gradients_of_two_processes_are_those_of_one(losses, norm):
    expected, expected_scalars = gradients(losses, norm)
    results = in_processes(2, my_gradients, losses, norm)
    for found, _ in results:
        for name, value in expected.items():
            if value is None:  # e.g. the CLS path of the last layer without a loss on it
                assert found[name] is None
                continue
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6, msg=name)
    for name, value in expected_scalars.items():
        mean = sum(scalars[name] for _, scalars in results) / 2
        torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-6, msg=name)


def local_and_averaged():
    torch.manual_seed(dist.get_rank())
    model = nn.Linear(2, 1)

    class Task(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, generator):
            return {"loss": self.model(batch["x"]).sum()}

    replica = Replica(Task())
    x = torch.full((1, 2), 1.0 + dist.get_rank())
    with replica.exchange(False):
        replica({"x": x}, None)["loss"].backward()
    first = model.weight.grad.clone()
    with replica.exchange(True):
        replica({"x": x}, None)["loss"].backward()
    return first, model.weight.grad, model.weight.detach()


def test_gradients_are_exchanged_only_when_asked_for_and_then_all_of_them():
    (first_0, all_0, weight_0), (first_1, all_1, weight_1) = in_processes(2, local_and_averaged)
    assert torch.equal(weight_0, weight_1)  # the main process's, although seeds differed
    assert first_0.tolist() == [[1.0, 1.0]]
    assert first_1.tolist() == [[2.0, 2.0]]
    assert all_0.tolist() == all_1.tolist() == [[3.0, 3.0]]


def mask_part(masker, tokens, clips_per_video):
    own = tokens.unflatten(0, (clips_per_video, 2, -1))[:, dist.get_rank()].flatten(0, 1)
    return GlobalMasker(masker, clips_per_video)(own, torch.Generator().manual_seed(3))


class PlainMasker:
    """A plug-in that only can be called."""

    def __call__(self, tokens, generator):
        return torch.rand(tokens.shape, generator=generator) < 0.4


class OtherMasker(BlockMasker):
    """Another mask than that of its base class."""

    def __call__(self, tokens, generator):
        return ~super().__call__(tokens, generator)


class OtherBlocks(BlockMasker):
    """Other blocks than those of its base class, whose mask is made of them."""

    def blocks(self, tokens, generator):
        return ~super().blocks(tokens, generator)


@pytest.mark.parametrize(
    "masker",
    [
        BlockMasker(1),
        OtherMasker(1),
        OtherBlocks(1),
        UniformMasker(0.4),
        TubeMasker(0.4),
        PlainMasker(),
    ],
)
@pytest.mark.parametrize("clips_per_video", [1, 2])
def test_masks_do_not_depend_on_the_number_of_processes(masker, clips_per_video):
    tokens = torch.zeros(4 * clips_per_video, *GRID, dtype=torch.int64)
    expected = masker(tokens, torch.Generator().manual_seed(3))
    parts = in_processes(2, mask_part, masker, tokens, clips_per_video)
    joined = torch.stack([p.unflatten(0, (clips_per_video, -1)) for p in parts], dim=1).flatten(
        0, 2
    )
    assert torch.equal(joined, expected)
    assert expected.any()
    assert not expected.all()


@pytest.mark.parametrize("masker", [BlockMasker(3), UniformMasker(0.4), TubeMasker(0.4)])
def test_a_process_makes_only_the_masks_of_its_own_clips(masker, monkeypatch):
    sizes = []
    follow = type(masker).mask_of
    monkeypatch.setattr(type(masker), "mask_of", lambda *a: sizes.append(len(a[-1])) or follow(*a))
    monkeypatch.setattr("vimpac_ext.engine.parallel.world_size", lambda: 8)
    masks = GlobalMasker(masker, 2)(torch.zeros(4, *GRID, dtype=torch.int64), torch.Generator())
    assert (len(masks), sizes) == (4, [4])


def corrupt_part(tokens, masks, noise, clips_per_video):
    def own(values):
        return values.unflatten(0, (clips_per_video, 2, -1))[:, dist.get_rank()].flatten(0, 1)

    generator = torch.Generator().manual_seed(5)
    special = SpecialTokens(VOCABULARY)
    return GlobalNoise(corrupt, clips_per_video)(own(tokens), own(masks), special, noise, generator)


@pytest.mark.parametrize("noise", ["none", "token", "block"])
@pytest.mark.parametrize("clips_per_video", [1, 2])
def test_noise_does_not_depend_on_the_number_of_processes(noise, clips_per_video):
    tokens = torch.randint(VOCABULARY, (4 * clips_per_video, *GRID))
    masker = BlockMasker(3)
    draw = masker.blocks if noise == "block" else masker
    masks = draw(tokens, torch.Generator().manual_seed(3))
    expected = corrupt(
        tokens, masks, SpecialTokens(VOCABULARY), noise, torch.Generator().manual_seed(5)
    )
    parts = in_processes(2, corrupt_part, tokens, masks, noise, clips_per_video)
    for index, wanted in enumerate(expected):
        grouped = [part[index].unflatten(0, (clips_per_video, -1)) for part in parts]
        assert torch.equal(torch.stack(grouped, dim=1).flatten(0, 2), wanted)


def pretrain(path, overrides):
    run(prepare(path, overrides))


def test_a_run_with_noise_is_that_of_one_process(tmp_path):
    config = make_tiny_project(tmp_path) / "pretrain.yaml"
    words = ["TASK.NAME", "PretrainTask", "TASK.noise", "block", "BACKBONE.dropout", "0.0"]
    words += ["HEADS.contrast", "null", "LOSSES.contrast", "null", "OUTPUT_DIR"]
    pretrain(config, [*words, str(tmp_path / "one")])
    in_processes(2, pretrain, config, [*words, str(tmp_path / "two")])
    found = {
        name: [
            json.loads(line)["loss"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("one", "two")
    }
    assert len(found["one"]) == 4
    assert found["two"] == pytest.approx(found["one"], rel=1e-4)


def finetune(path, overrides):
    return run(prepare(path, overrides))


def test_a_whole_run_with_evaluation_is_that_of_one_process(tmp_path):
    """Nine test videos for two processes, one of them missing in the store."""
    configs = make_tiny_project(tmp_path)
    with (tmp_path / "data/test.csv").open("a") as file:
        file.write("clips/lost.mp4 0\n")
    overrides = ["TRAIN.CHECKPOINT_FILE_PATH", "", "DATA.ON_BAD_VIDEO", "count_wrong"]
    overrides += ["TRAIN.EVAL_PERIOD", "1", "TRAIN.MICRO_BATCH_SIZE", "2", "SOLVER.MAX_EPOCH", "4"]
    overrides += ["BACKBONE.dropout", "0.0", "OUTPUT_DIR"]
    expected = finetune(configs / "finetune.yaml", [*overrides, str(tmp_path / "one")])
    results = in_processes(
        2, finetune, configs / "finetune.yaml", [*overrides, str(tmp_path / "two")]
    )
    assert results == [expected, expected]
    assert expected["protocol"]["expected_videos"] == 9
    assert expected["protocol"]["missing_videos"] == 1

    lines = {}
    for name in ("one", "two"):
        text = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        lines[name] = [json.loads(line) for line in text]
    assert len(lines["one"]) == len(lines["two"]) == 8 + 4 + 1
    for one, two in zip(lines["one"], lines["two"], strict=True):
        for key in ("_type", "update", "epoch", "iter", "lr", "top1_err", "top1_acc"):
            assert one.get(key) == two.get(key)
        for key in ("loss", "grad_norm", "top1_accuracy"):
            assert one.get(key, 0.0) == pytest.approx(two.get(key, 0.0), rel=1e-4)
