"""Against OpenAI's own package (`DALL-E` on PyPI), which makes such files and networks."""

import importlib
import sys

import pytest
import torch
import torch.nn.functional as F

from vimpac_ext.tokenizers import DalleTokenizer
from vimpac_ext.tokenizers.safe_pickle import read_tensors

LEGACY = {"_use_new_zipfile_serialization": False}


@pytest.fixture
def dall_e():
    """The package; no longer imported afterwards, since other tests must do without it."""
    pytest.importorskip("dall_e")
    yield importlib.import_module("dall_e")
    for name in [name for name in sys.modules if name.split(".")[0] == "dall_e"]:
        del sys.modules[name]


def redrawn(network):
    """Weights whose every part shows in the output; biases start at zero otherwise."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            scale = 0.05 if name.endswith("b") else 1.3 / parameter[0].numel() ** 0.5
            parameter.normal_(std=scale)
    return network.eval()


@pytest.mark.parametrize("container", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize(("width", "blocks", "vocab_size"), [(64, 2, 512), (68, 1, 600)])
def test_tokens_and_pictures_are_the_packages(
    dall_e, tmp_path, container, width, blocks, vocab_size
):
    torch.manual_seed(width)
    sizes = {"n_hid": width, "n_blk_per_group": blocks, "vocab_size": vocab_size}
    encoder = redrawn(dall_e.Encoder(**sizes))
    decoder = redrawn(dall_e.Decoder(n_init=24, **sizes))
    torch.save(encoder, tmp_path / "encoder.pkl", **container)
    torch.save(decoder, tmp_path / "decoder.pkl", **container)
    images = torch.rand(2, 3, 4, 6).repeat_interleave(8, 2).repeat_interleave(8, 3)
    images += 0.1 * (torch.rand_like(images) - images)
    with torch.no_grad():
        logits = encoder(dall_e.map_pixels(images))
        tokens = logits.argmax(dim=1)
        drawn = torch.randint(vocab_size, (2, 4, 6))
        codes = F.one_hot(drawn, vocab_size).permute(0, 3, 1, 2).float()
        pictures = dall_e.unmap_pixels(torch.sigmoid(decoder(codes)[:, :3]))

    tokenizer = DalleTokenizer(str(tmp_path / "encoder.pkl"), str(tmp_path / "decoder.pkl"))
    assert (tokenizer.vocab_size, tokenizer.stride) == (vocab_size, 8)
    torch.testing.assert_close(tokenizer.logits(images), logits, atol=3e-5, rtol=1e-5)
    assert torch.equal(tokenizer.encode(images), tokens)
    assert len(tokens.unique()) > 3  # not one token everywhere
    torch.testing.assert_close(tokenizer.decode(drawn), pictures, atol=3e-5, rtol=0)


@pytest.mark.parametrize("container", [{}, LEGACY], ids=["zip", "legacy"])
def test_weights_of_a_whole_module_are_read_bit_by_bit(dall_e, tmp_path, container):
    encoder = redrawn(dall_e.Encoder(n_hid=64, n_blk_per_group=1, vocab_size=512))
    torch.save(encoder, tmp_path / "encoder.pkl", **container)
    tensors = read_tensors(tmp_path / "encoder.pkl")
    expected = encoder.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    # The package itself unpickles the file, which executes what it names.
    loaded = torch.load(tmp_path / "encoder.pkl", weights_only=False)
    assert type(loaded) is dall_e.Encoder
