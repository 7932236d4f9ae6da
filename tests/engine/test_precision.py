"""TRAIN.TF32, TRAIN.COMPILE and MODEL.CHANNELS_LAST are about speed; the results stay."""

import copy
import os
import signal
import warnings

import pytest
import torch
from processes import free_port, run_processes
from test_resume import lines, run_dying, weights
from tiny_project import make_tiny_project

from vimpac_ext.backbones import PytorchVideoBackbone
from vimpac_ext.config import ConfigError
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.memory_format import channels_last, match_memory_formats
from vimpac_ext.engine.placement import Placement
from vimpac_ext.engine.processes import RunRequest
from vimpac_ext.tokenizers import VQVAETokenizer
from vimpac_ext.tokenizers.dalle_networks import DalleEncoder


@pytest.fixture
def project(tmp_path):
    return make_tiny_project(tmp_path)


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_for_products_and_convolutions(project, allowed):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        run(prepare(project / "pretrain.yaml", ["TRAIN.TF32", str(allowed)]))
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert torch.backends.cudnn.allow_tf32 is allowed
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def run_compiled(*arguments):
    warnings.simplefilter("ignore")  # inductor's imports use what PyTorch itself deprecates
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    run_dying(*arguments)


def start(config, overrides, size=1, victim=None, moment=None):
    port = free_port()
    places = [Placement(r, size, r, "127.0.0.1", port, r == 0, "torchrun") for r in range(size)]
    request = RunRequest((str(config),), tuple(map(str, overrides)))
    calls = [(place, request, victim, signal.SIGTERM, moment) for place in places]
    return run_processes(run_compiled, calls, timeout=900)


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "size"), [("ddp", 1), ("fsdp", 2)])
def test_a_compiled_run_is_the_eager_one(project, tmp_path, monkeypatch, parallel, size):
    """In two processes, stopped, and resumed in ``size``."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    config = project / "pretrain.yaml"
    overrides = ["SOLVER.MAX_EPOCH", "2", "BACKBONE.dropout", "0.0", "HEADS.contrast.norm", "ln"]
    overrides += ["SOLVER.OPTIMIZING_METHOD", "sgd", "TRAIN.EMA_DECAY", "0.5", "OUTPUT_DIR"]
    start(config, [*overrides, tmp_path / "eager"])
    compiled = ["TRAIN.COMPILE", "True", "TRAIN.PARALLEL", parallel, "LOG_MODEL_INFO", "True"]
    broken = [*overrides, tmp_path / "broken", *compiled, "DIST_TIMEOUT", "600"]
    ended = start(config, broken, 2, 0, 3)
    assert [process.code for process in ended] == [75, 75], ended
    ended = start(config, broken, size)
    assert [process.code for process in ended] == [0] * size, ended
    expected, found = lines(tmp_path / "eager"), lines(tmp_path / "broken")
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    for state in ("model_state", "ema_state"):
        expected, found = weights(tmp_path / "eager", state), weights(tmp_path / "broken", state)
        assert found.keys() == expected.keys()  # no "_orig_mod" in them
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0.01, atol=1e-4, msg=key)


def with_gradients(module, x):
    """Results of a module, and all its gradients."""
    module.zero_grad()
    result = module(x)
    result = result["cls"] if isinstance(result, dict) else result
    result.square().sum().backward()
    return [result.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]


def networks():
    torch.manual_seed(0)
    dalle = DalleEncoder(16, blocks_per_group=1, vocab_size=16)
    for parameter in dalle.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return {
        "dalle": (dalle, torch.rand(2, 3, 32, 32)),
        "vqvae": (
            VQVAETokenizer(None, vocab_size=16, hidden_dim=16, code_dim=4)
            .requires_grad_(True)
            .encoder,
            torch.rand(2, 3, 32, 32),
        ),
        "slow": (
            PytorchVideoBackbone((4, 32, 32), "slow_r50", global_pool=True).eval(),
            torch.rand(1, 3, 4, 32, 32),
        ),
    }


@pytest.mark.parametrize("name", ["dalle", "vqvae", "slow"])
def test_channels_last_gives_the_same_values_and_gradients(name):
    network, x = networks()[name]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    expected = with_gradients(network, x)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    seen = []
    for part in network.modules():
        if hasattr(part, "w") or isinstance(part, (torch.nn.Conv2d, torch.nn.Conv3d)):
            part.register_forward_hook(
                lambda m, i, y: seen.append(y.is_contiguous(memory_format=formats[y.ndim]))
            )
    assert channels_last(network) is network
    for result, value in zip(with_gradients(network, x), expected, strict=True):
        torch.testing.assert_close(result, value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))
    # On the CPU pooling and pointwise convolutions of three dimensions put the channels back.
    assert all(seen if name != "slow" else seen[:1])
    assert len(seen) > 5
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key])


def test_moments_take_the_memory_format_of_their_parameters():
    """The fused kernels would otherwise pair numbers of different places."""
    x = torch.rand(2, 4, 8, 8)
    plain, other = (torch.nn.Conv2d(4, 4, 3) for _ in range(2))
    other.load_state_dict(plain.state_dict())
    optimizers = []
    for model in (plain, other):
        optimizer = torch.optim.AdamW(model.parameters(), 0.1, fused=True)
        model(x).square().sum().backward()
        optimizer.step()
        optimizers.append(optimizer)
    channels_last(other)
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    match_memory_formats(optimizers[1])
    for model, optimizer in zip((plain, other), optimizers, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert optimizers[1].state[other.weight]["exp_avg"].stride() == other.weight.stride()
    torch.testing.assert_close(other.weight, plain.weight, rtol=1e-3, atol=1e-4)


def test_a_run_with_channels_last(project, tmp_path):
    """Its tokens come from an online tokenizer; shards cannot have such weights."""
    words = ["MODEL.CHANNELS_LAST", "True"]
    with pytest.raises(ConfigError, match="MODEL.CHANNELS_LAST .* must be False, since TRAIN.PAR"):
        prepare(project / "pretrain.yaml", [*words, "TRAIN.PARALLEL", "fsdp"])
    run(prepare(project / "pretrain.yaml", words))
    with_key = lines(tmp_path / "pretrain")
    run(prepare(project / "pretrain.yaml", ["OUTPUT_DIR", str(tmp_path / "without")]))
    assert with_key == lines(tmp_path / "without")
