import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vimpac_ext.registries import TOKENIZERS
from vimpac_ext.tokenizers import DalleTokenizer
from vimpac_ext.tokenizers.dalle import DECODER_URL, ENCODER_URL
from vimpac_ext.tokenizers.dalle_networks import DalleDecoder, DalleEncoder


@pytest.fixture(scope="module")
def original(fixtures_dir):
    return fixtures_dir / "original"


def state_of(arrays):
    return {
        name.removeprefix("sd/"): torch.from_numpy(arrays[name])
        for name in arrays.files
        if name.startswith("sd/")
    }


@pytest.fixture(scope="module")
def encoder_arrays(original):
    return np.load(original / "dalle_encoder.npz")


@pytest.fixture(scope="module")
def decoder_arrays(original):
    return np.load(original / "dalle_decoder.npz")


@pytest.fixture
def encoder_path(tmp_path, encoder_arrays):
    path = tmp_path / "encoder.safetensors"
    save_file(state_of(encoder_arrays), path)
    return path


@pytest.fixture
def decoder_path(tmp_path, decoder_arrays):
    path = tmp_path / "decoder.pt"
    torch.save(state_of(decoder_arrays), path)
    return path


def test_encoder_gives_the_originals_logits_and_tokens(encoder_path, encoder_arrays):
    assert TOKENIZERS.get("DalleTokenizer") is DalleTokenizer
    tokenizer = DalleTokenizer(str(encoder_path))
    assert (tokenizer.vocab_size, tokenizer.stride) == (64, 8)
    image = torch.from_numpy(encoder_arrays["image"])
    np.testing.assert_allclose(tokenizer.logits(image), encoder_arrays["logits"], atol=3e-5, rtol=0)
    tokens = tokenizer.encode(image)
    assert tokens.dtype == torch.int64
    np.testing.assert_array_equal(tokens, encoder_arrays["tokens"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(image), tokens)
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())


def test_decoder_gives_the_originals_reconstruction(encoder_path, decoder_path, decoder_arrays):
    tokenizer = DalleTokenizer(str(encoder_path), str(decoder_path))
    tokens = torch.from_numpy(decoder_arrays["tokens"])
    stats = tokenizer.decoder(tokens).detach()
    np.testing.assert_allclose(stats, decoder_arrays["stats"], atol=3e-5, rtol=0)
    reconstruction = tokenizer.decode(tokens)
    np.testing.assert_allclose(reconstruction, decoder_arrays["reconstruction"], atol=3e-5, rtol=0)
    assert 0 <= reconstruction.min() <= reconstruction.max() <= 1
    with pytest.raises(ValueError, match=r"0\.\.63, found .*64"):
        tokenizer.decode(tokens.clone().fill_(64))


def test_more_blocks_and_other_widths_are_inferred(tmp_path):
    torch.manual_seed(0)
    encoder = DalleEncoder(hidden_dim=4, blocks_per_group=3, vocab_size=20)
    decoder = DalleDecoder(hidden_dim=4, input_dim=6, blocks_per_group=3, vocab_size=20)
    for name, network in {"encoder": encoder, "decoder": decoder}.items():
        state = {key: torch.randn_like(value) for key, value in network.state_dict().items()}
        save_file(state, tmp_path / f"{name}.safetensors")
    tokenizer = DalleTokenizer(
        *(str(tmp_path / f"{n}.safetensors") for n in ("encoder", "decoder"))
    )
    assert tokenizer.vocab_size == 20
    assert tokenizer.encoder.blocks["group_1"]["block_3"].gain == 1 / 144
    tokens = tokenizer.encode(torch.rand(2, 3, 16, 8))
    assert tokenizer.decode(tokens).shape == (2, 3, 16, 8)


def test_full_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        encoder, decoder = DalleEncoder(), DalleDecoder()
    num_encoder = sum(parameter.numel() for parameter in encoder.parameters())
    assert num_encoder == expected_num_encoder_parameters(256, 2, 8192)
    assert round(num_encoder / 1e6, 1) == 53.8
    assert decoder.blocks["input"].w.shape == (128, 8192, 1, 1)
    assert decoder.blocks["group_1"]["block_1"].id_path.w.shape == (2048, 128, 1, 1)
    assert decoder.blocks["output"]["conv"].w.shape == (6, 256, 1, 1)


def expected_num_encoder_parameters(hidden_dim, blocks_per_group, vocab_size):
    def conv(inputs, outputs, kernel_size):
        return inputs * outputs * kernel_size**2 + outputs

    total, width = conv(3, hidden_dim, 7), hidden_dim
    for group in range(4):
        out = hidden_dim * 2**group
        for _ in range(blocks_per_group):
            total += conv(width, out, 1) if width != out else 0
            total += conv(width, out // 4, 3) + 2 * conv(out // 4, out // 4, 3)
            total += conv(out // 4, out, 1)
            width = out
    return total + conv(width, vocab_size, 1)


def test_originals_pickle_loads_without_its_classes(original, encoder_arrays):
    assert "dall_e" not in sys.modules
    tokenizer = DalleTokenizer(str(original / "dalle_encoder.pkl"))
    tokens = tokenizer.encode(torch.from_numpy(encoder_arrays["image"]))
    np.testing.assert_array_equal(tokens, encoder_arrays["tokens"])
    assert "dall_e" not in sys.modules


def test_other_files_are_refused_with_the_reason(tmp_path, encoder_path, decoder_path):
    text = tmp_path / "text.pkl"
    text.write_text("<html>404</html>")
    with pytest.raises(ValueError, match="text.pkl: damaged, or not written by torch.save"):
        DalleTokenizer(str(text))
    with pytest.raises(ValueError, match="decoder.pt is not a DALL-E encoder"):
        DalleTokenizer(str(decoder_path))
    with pytest.raises(ValueError, match="encoder.safetensors is not a DALL-E decoder"):
        DalleTokenizer(str(encoder_path), str(encoder_path))
    other = tmp_path / "other.safetensors"
    save_file({"fc.weight": torch.zeros(2, 2)}, other)
    with pytest.raises(ValueError, match="other.safetensors is not a network of DALL-E.*fc.weight"):
        DalleTokenizer(str(other))
    other.write_bytes(b"")
    with pytest.raises(ValueError, match="other.safetensors is damaged"):
        DalleTokenizer(str(other))
    save_file(DalleDecoder(4, 4, 1, vocab_size=9).state_dict(), other)
    with pytest.raises(ValueError, match="has 64 tokens, but decoder .*other.safetensors has 9"):
        DalleTokenizer(str(encoder_path), str(other))


def test_missing_file_says_where_and_how_to_get_it(tmp_path, encoder_path):
    with pytest.raises(FileNotFoundError, match="nowhere/encoder.pkl") as error:
        DalleTokenizer(str(tmp_path / "nowhere" / "encoder.pkl"))
    assert f"curl -LO {ENCODER_URL}" in str(error.value)
    with pytest.raises(FileNotFoundError, match="decoder.pkl") as error:
        DalleTokenizer(str(encoder_path), str(tmp_path / "decoder.pkl"))
    assert f"curl -LO {DECODER_URL}" in str(error.value)
    with pytest.raises(ValueError, match="no decoder"):
        DalleTokenizer(str(encoder_path)).decode(torch.zeros(1, 2, 2, dtype=torch.int64))


def test_url_is_downloaded_once_into_the_cache(tmp_path, original, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    downloads = []

    def download(url, dir, *, filename):
        downloads.append(url)
        path = Path(dir) / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((original / "dalle_encoder.pkl").read_bytes())
        return str(path)

    monkeypatch.setattr("iopath.common.file_io.download", download)
    first, second = DalleTokenizer(), DalleTokenizer(ENCODER_URL)
    assert downloads == [ENCODER_URL]
    assert first.fingerprint == second.fingerprint
    assert list((tmp_path / "cache").rglob("encoder.pkl"))


def test_failed_download_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))

    def download(url, dir, *, filename):
        raise OSError("no route to host")

    monkeypatch.setattr("iopath.common.file_io.download", download)
    with pytest.raises(FileNotFoundError, match="no route to host") as error:
        DalleTokenizer()
    assert ENCODER_URL in str(error.value)
    assert str(tmp_path / "cache") in str(error.value)


def test_fingerprint_is_of_the_encoder(encoder_path, decoder_path, original, encoder_arrays):
    alone = DalleTokenizer(str(encoder_path))
    assert alone.fingerprint.startswith("DalleTokenizer:")
    assert DalleTokenizer(str(encoder_path), str(decoder_path)).fingerprint == alone.fingerprint
    assert DalleTokenizer(str(original / "dalle_encoder.pkl")).fingerprint == alone.fingerprint
    state = state_of(encoder_arrays)
    state["blocks.input.b"][0] += 1e-3
    save_file(state, encoder_path)
    assert DalleTokenizer(str(encoder_path)).fingerprint != alone.fingerprint


def test_tokenizer_can_be_pickled_for_workers(encoder_path, encoder_arrays):
    tokenizer = pickle.loads(pickle.dumps(DalleTokenizer(str(encoder_path))))
    tokens = tokenizer.encode(torch.from_numpy(encoder_arrays["image"]))
    np.testing.assert_array_equal(tokens, encoder_arrays["tokens"])


def test_config_of_the_fixture_is_what_was_inferred(encoder_arrays, encoder_path):
    config = json.loads(str(encoder_arrays["config"]))
    encoder = DalleTokenizer(str(encoder_path)).encoder
    assert encoder.blocks["input"].w.shape[0] == config["n_hid"]
    assert len(encoder.blocks["group_1"]) == config["n_blk_per_group"]


@pytest.mark.slow
def test_random_full_size_encoder_is_always_the_same():
    tokenizer = DalleTokenizer(encoder=None)
    assert tokenizer.vocab_size == 8192
    frames = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = tokenizer.encode(frames)
    assert tokens.shape == (1, 4, 4)
    other = DalleTokenizer(encoder=None)
    assert torch.equal(other.encode(frames), tokens)
    assert other.fingerprint == tokenizer.fingerprint
