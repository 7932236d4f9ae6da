import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vimpac_ext.registries import TOKENIZERS
from vimpac_ext.tokenizers import VQVAETokenizer
from vimpac_ext.tokenizers.vqvae import DEMO_WEIGHTS


def small_tokenizer(seed=0, **sizes):
    torch.manual_seed(seed)
    return VQVAETokenizer(
        weights=None, **{"vocab_size": 16, "hidden_dim": 8, "code_dim": 4} | sizes
    )


def random_frames(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_contract_of_a_tokenizer():
    assert TOKENIZERS.get("VQVAETokenizer") is VQVAETokenizer
    tokenizer = small_tokenizer()
    tokens = tokenizer.encode(random_frames(5, 3, 16, 24))
    assert tokens.shape == (5, 2, 3)
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() <= tokens.max() < 16
    frames = tokenizer.decode(tokens)
    assert frames.shape == (5, 3, 16, 24)
    assert 0 <= frames.min() <= frames.max() <= 1
    assert not tokenizer.training
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())


def test_tokens_are_the_nearest_codes():
    tokenizer = small_tokenizer()
    frames = random_frames(2, 3, 32, 16)
    features = tokenizer.features(frames).double()
    expected = torch.empty(2, 4, 2, dtype=torch.int64)
    for index in torch.cartesian_prod(*map(torch.arange, expected.shape)):
        distances = [(features[tuple(index)] - code).norm() for code in tokenizer.codebook.double()]
        expected[tuple(index)] = int(torch.stack(distances).argmin())
    torch.testing.assert_close(tokenizer.encode(frames), expected, rtol=0, atol=0)


def test_encode_repeats_and_does_not_depend_on_the_batch_or_autocast():
    tokenizer = small_tokenizer(hidden_dim=32)
    frames = random_frames(6, 3, 32, 32)
    tokens = tokenizer.encode(frames)
    assert torch.equal(tokenizer.encode(frames), tokens)
    assert torch.equal(torch.cat([tokenizer.encode(frame[None]) for frame in frames]), tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(frames), tokens)
        torch.testing.assert_close(tokenizer.decode(tokens), tokenizer.decode(tokens).float())


def test_a_token_depends_on_12_by_12_pixels_alone():
    tokenizer = small_tokenizer(hidden_dim=16)
    frames = random_frames(1, 3, 40, 40).requires_grad_()
    tokenizer.features(frames)[0, 2, 2].sum().backward()
    seen = frames.grad[0].abs().sum(0).nonzero()
    assert seen.min(0).values.tolist() == [14, 14]  # the patch is 16..23
    assert seen.max(0).values.tolist() == [25, 25]


def test_save_and_load(tmp_path):
    tokenizer = small_tokenizer()
    path = tmp_path / "new" / "weights.safetensors"
    tokenizer.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]
    loaded = VQVAETokenizer(str(path))
    assert (loaded.vocab_size, loaded.hidden_dim, loaded.code_dim) == (16, 8, 4)
    frames = random_frames(3, 3, 16, 16)
    assert torch.equal(loaded.encode(frames), tokenizer.encode(frames))
    assert loaded.fingerprint == tokenizer.fingerprint
    with safe_open(path, framework="pt") as file:
        sizes = json.loads(file.metadata()["VQVAETokenizer"])
    assert sizes == {"vocab_size": 16, "hidden_dim": 8, "code_dim": 4}
    VQVAETokenizer(str(path), vocab_size=16)  # agrees
    with pytest.raises(ValueError, match="vocab_size 16, but 32 is asked for"):
        VQVAETokenizer(str(path), vocab_size=32)


def test_fingerprint_names_the_weights_in_every_process():
    tokenizer = small_tokenizer()
    script = (
        "import torch; torch.manual_seed(0);"
        "from vimpac_ext.tokenizers import VQVAETokenizer as T;"
        "print(T(None, vocab_size=16, hidden_dim=8, code_dim=4).fingerprint)"
    )
    other = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert other == tokenizer.fingerprint
    assert other.startswith("VQVAETokenizer:")
    tokenizer.codebook[3, 1] += 1e-6
    assert tokenizer.fingerprint != other
    assert small_tokenizer(seed=1).fingerprint != other


def test_weights_that_come_with_the_library():
    tokenizer = VQVAETokenizer()
    assert DEMO_WEIGHTS.stat().st_size <= 4e6
    assert (tokenizer.vocab_size, tokenizer.stride) == (64, 8)
    ramp = torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64)
    assert (tokenizer.decode(tokenizer.encode(ramp)) - ramp).abs().mean() < 0.1


def test_full_size_fits_in_4_megabytes(tmp_path):
    VQVAETokenizer(weights=None).save(tmp_path / "weights.safetensors")
    assert (tmp_path / "weights.safetensors").stat().st_size <= 4e6


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(1, 3, 60, 64), "60 x 64 .* divisible by 8"),
        (torch.zeros(1, 3, 64, 65), "64 x 65 .* divisible by 8"),
        (torch.zeros(3, 64, 64), "shape"),
        (torch.zeros(1, 1, 64, 64), "shape"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "torch.uint8"),
    ],
)
def test_frames_that_cannot_be_tokenized(frames, message):
    with pytest.raises(ValueError, match=message):
        small_tokenizer().encode(frames)


@pytest.mark.parametrize("token", [-1, 16, 20])
def test_special_tokens_cannot_be_decoded(token):
    with pytest.raises(ValueError, match=rf"0\.\.15, found .*{token}"):
        small_tokenizer().decode(torch.tensor([[[token, 3]]]))


def test_odd_width_is_refused():
    with pytest.raises(ValueError, match="hidden_dim must be even, found 7"):
        small_tokenizer(hidden_dim=7)


def test_bad_weights_files_are_named(tmp_path):
    missing = tmp_path / "missing.safetensors"
    with pytest.raises(FileNotFoundError, match="missing.safetensors"):
        VQVAETokenizer(str(missing))
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="garbage.safetensors is damaged"):
        VQVAETokenizer(str(garbage))
    whole = tmp_path / "whole.safetensors"
    small_tokenizer().save(whole)
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated.safetensors is damaged"):
        VQVAETokenizer(str(truncated))
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, other)
    with pytest.raises(ValueError, match="other.safetensors was not written by .* weight"):
        VQVAETokenizer(str(other))
    lying = tmp_path / "lying.safetensors"
    sizes = {"vocab_size": 16, "hidden_dim": 8, "code_dim": 5}
    tensors = load_file(whole)
    save_file(tensors, lying, {"VQVAETokenizer": json.dumps(sizes)})
    with pytest.raises(ValueError, match="lying.safetensors does not fit its own description"):
        VQVAETokenizer(str(lying))
