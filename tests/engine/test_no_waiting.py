"""Between two log lines, a training asks nothing of its GPU that it would have to wait for.

On PyTorch's "meta" device tensors have shapes and no values: whatever needs one (`Tensor.item`,
`nonzero`, a boolean index, a condition) is an error. Here it stands for the GPU.
"""

import contextlib

import pytest
import torch
from processes import in_processes
from tiny_project import make_tiny_project
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vimpac_ext.data.loaders import train_loader
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.assembly import build_task
from vimpac_ext.engine.checkpoint import Checkpointer
from vimpac_ext.engine.events import SilentLog
from vimpac_ext.engine.step_inputs import StepInputs
from vimpac_ext.engine.trainer import Trainer, TrainerOptions
from vimpac_ext.engine.training import training_clips, update_sampler
from vimpac_ext.losses.gather import sizes_of_processes
from vimpac_ext.maskers import BlockMasker
from vimpac_ext.registries import TOKENIZERS

aten = torch.ops.aten
DEVICE = torch.device("meta")
# They give as many elements as there are of something, or a number: a GPU is asked and waited for.
ASKING = {
    aten.nonzero,
    aten._local_scalar_dense,
    aten.is_nonzero,
    aten.masked_select,
    aten.bincount,
    aten._unique2,
    aten.equal,
}


class Watch(TorchDispatchMode):
    """Notes what would wait for a GPU, and how many operations did not."""

    def __init__(self):
        super().__init__()
        self.waits = []
        self.calls = 0

    def __torch_dispatch__(self, func, types, arguments=(), keywords=None):
        keywords = keywords or {}
        tensors = [x for x in tree_leaves((arguments, keywords)) if isinstance(x, torch.Tensor)]
        on_device = [x for x in tensors if x.device == DEVICE]
        packet = func._overloadpacket
        if on_device and (packet in ASKING or self._is_boolean_index(packet, arguments)):
            self.waits.append(str(packet))
        if packet in (aten._to_copy, aten.copy_):
            self._look_at_a_copy(packet, arguments, keywords)
        self.calls += bool(on_device)
        return func(*arguments, **keywords)

    def _is_boolean_index(self, packet, arguments):
        if packet not in (aten.index, aten.index_put, aten.index_put_):
            return False
        return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in arguments[1])

    def _look_at_a_copy(self, packet, arguments, keywords):
        if packet is aten._to_copy:
            ends = arguments[0].device, keywords.get("device") or arguments[0].device
            asynchronous = keywords.get("non_blocking", False)
        else:
            ends = arguments[1].device, arguments[0].device
            asynchronous = arguments[2] if len(arguments) > 2 else False
        source, target = (torch.device(end) for end in ends)
        if source != target and not (target == DEVICE and asynchronous):
            self.waits.append(f"{packet} from {source} to {target}")


@TOKENIZERS.register()
class AnyTokens(torch.nn.Module):
    """Some code for each patch of 8 x 8 pixels."""

    stride, fingerprint = 8, "AnyTokens:0"

    def __init__(self, vocab_size):
        super().__init__()
        self.vocab_size = vocab_size

    def encode(self, frames):
        brightness = torch.nn.functional.avg_pool2d(frames.mean(dim=1), 8)
        return (brightness * self.vocab_size).long().clamp(max=self.vocab_size - 1)


@pytest.fixture
def project(tmp_path):
    return make_tiny_project(tmp_path)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """What the meta device lacks: a generator, autocast, fused optimizers."""
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def trainer_on_the_device(config, folder, overrides, batches=None, **more):
    cfg = prepare(config, ["LOG_PERIOD", "100", *overrides]).cfg
    task = build_task(cfg).to(DEVICE)
    clips = training_clips(cfg, task) if batches is None else range(8)
    sampler = update_sampler(cfg, len(clips), 0)
    loader = train_loader(clips, sampler, 0, False) if batches is None else batches
    options = TrainerOptions(
        clip_grad_norm=1.0,
        precision="fp32",
        log_period=100,
        checkpoint_period=100,
        eval_period=0,
        seed=0,
        **more,
    )
    optimizer = torch.optim.AdamW(task.parameters(), foreach=True)
    checkpointer = Checkpointer(folder, "", {})
    return Trainer(
        task, sampler, loader, optimizer, lambda u: 0.1, checkpointer, SilentLog(), DEVICE, options
    )


def watched(trainer, num_updates=2):
    trainer.task.train()
    batches = iter(trainer.loader)
    with Watch() as watch:
        for update in range(num_updates):
            scalars = trainer._update(update, 0.1, batches)
    assert watch.calls > 100
    assert {value.device for value in scalars.values()} == {DEVICE}
    return watch.waits


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("config", "overrides", "more"),
    [
        ("pretrain", [], {}),
        ("pretrain", ["TRAIN.MICRO_BATCH_SIZE", "2"], {"ema_decay": 0.9}),
        ("pretrain", ["TASK.NAME", "PretrainTask", "TASK.noise", "block"], {}),
        ("pretrain", ["TASK.NAME", "PretrainTask", "TASK.unmasked_heads", "[contrast]"], {}),
        ("pretrain", ["MASKER.NAME", "TubeMasker"], {}),
        ("pretrain", ["BACKBONE.activation_checkpointing", "True"], {}),
        ("pretrain", ["HEADS.contrast.norm", "ln", "BACKBONE.layout", "TxHxW"], {}),
        ("finetune", ["TRAIN.CHECKPOINT_FILE_PATH", ""], {}),
    ],
)
def test_an_update_waits_for_nothing(project, tmp_path, config, overrides, more):
    path = project / f"{config}.yaml"
    assert watched(trainer_on_the_device(path, tmp_path, overrides, **more)) == []


def frames(number=2):
    clips = torch.rand(4, 2, 3, 3, 16, 16)
    clips[0, 0, :, 1:] = torch.nan
    for _ in range(number):
        yield {"clips": clips, "video_index": torch.arange(4)}


class Batches(list):
    """A loader of frames."""


ONLINE = ["DATA.TOKENS", "online", "TOKENIZER.NAME", "AnyTokens"]
TIMM = ["BACKBONE.NAME", "TimmSpaceTime", "BACKBONE.model", "vit_tiny_patch16_224"]
TIMM += ["BACKBONE.options", "{img_size: 16, patch_size: 8, depth: 1}"]


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("backbone", [[], TIMM])
def test_nor_one_that_makes_its_tokens(project, tmp_path, backbone):
    overrides = [*ONLINE, *backbone]
    path = project / "pretrain.yaml"
    trainer = trainer_on_the_device(path, tmp_path, overrides, batches=Batches(frames()))
    assert watched(trainer) == []


@pytest.mark.usefixtures("as_on_a_gpu")
def test_nor_one_that_trains_a_tokenizer(project, tmp_path, monkeypatch):
    # On a GPU the step's generator draws there.
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n, device=DEVICE))
    words = ["TASK.NAME", "TrainTokenizerTask", "TOKENIZER.NAME", "VQVAETokenizer"]
    words += ["TOKENIZER.hidden_dim", "16", "TOKENIZER.code_dim", "4", "TOKENIZER.weights", "null"]
    path = project / "pretrain.yaml"
    trainer = trainer_on_the_device(path, tmp_path, words, batches=Batches(frames()))
    assert watched(trainer) == []


@pytest.mark.usefixtures("as_on_a_gpu")
def test_the_watch_sees_what_waits(project, tmp_path):
    """A step that draws its mask on the device has to ask how many tokens are hidden."""
    trainer = trainer_on_the_device(project / "pretrain.yaml", tmp_path, [])
    trainer.inputs._prepare = None
    with pytest.raises(NotImplementedError, match="nonzero"):
        watched(trainer)
    found = torch.zeros(3, device=DEVICE)
    with Watch() as watch:
        torch.arange(3).to(DEVICE)
        torch.arange(3).to(DEVICE, non_blocking=True)
        with pytest.raises(NotImplementedError):
            found[found > 0]
        with pytest.raises(RuntimeError):
            found.sum().item()
    assert watch.waits == [
        "aten._to_copy from cpu to meta",
        "aten.index",
        "aten._local_scalar_dense",
    ]


def test_what_is_drawn_before_the_step_is_what_the_step_would_draw(project):
    for overrides in ([], ["TASK.NAME", "PretrainTask", "TASK.noise", "token"], ONLINE):
        task = build_task(prepare(project / "pretrain.yaml", overrides).cfg)
        clips = torch.randint(20, (4, 2, 3, 2, 2))
        batch = next(frames()) if overrides == ONLINE else {"clips": clips}
        inputs = StepInputs(task, torch.device("cpu"), seed=3)
        prepared = inputs(batch, step=5)
        assert prepared["mask"].any()
        generator = torch.Generator().manual_seed(3 * 1_000_003 + 5)
        losses = []
        for given in (prepared, batch):
            torch.manual_seed(0)  # of dropout
            losses.append(task.training_step(given, generator)["loss"])
        assert losses[0].item() == losses[1].item()


class BrightMasker(BlockMasker):
    """Looks at the tokens, which its base class does not."""

    def __call__(self, tokens, generator=None):
        return tokens > 10


def test_a_masker_that_looks_at_the_tokens_gets_them(project):
    task = build_task(prepare(project / "pretrain.yaml", ONLINE).cfg)
    task.masker = BrightMasker(1)
    batch = next(frames())
    assert task.prepare(batch, torch.Generator()) == {}
    shown = []
    task.backbone.register_forward_pre_hook(lambda _, inputs: shown.append(*inputs))
    task.training_step(batch, torch.Generator())
    tokens = task.tokenize(batch["clips"].transpose(0, 1).flatten(0, 1))
    hidden = (tokens > 10) & (tokens != task.special.pad)
    assert torch.equal(shown[0], tokens.masked_fill(hidden, task.special.mask))


def test_processes_compare_their_sizes_past_the_device():
    assert in_processes(2, sizes_of_processes, 3, DEVICE) == [[3, 3], [3, 3]]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("config", ["pretrain", "finetune"])
def test_a_gpu_is_not_waited_for(project, tmp_path, monkeypatch, config, precision):
    update = Trainer._update

    def strict(self, number, *arguments):
        # The first updates may: the meter, and states that are made.
        torch.cuda.set_sync_debug_mode("error" if number > 1 else "default")
        try:
            return update(self, number, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_update", strict)
    overrides = ["NUM_GPUS", "1", "TRAIN.PRECISION", precision, "TRAIN.CHECKPOINT_FILE_PATH", ""]
    run(prepare(project / f"{config}.yaml", [*overrides, "TRAIN.EMA_DECAY", "0.9"]))
