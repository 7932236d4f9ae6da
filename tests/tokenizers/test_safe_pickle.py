import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from vimpac_ext.tokenizers import DalleTokenizer
from vimpac_ext.tokenizers.safe_pickle import read_tensors


@pytest.fixture(scope="module")
def encoder_arrays(fixtures_dir):
    return np.load(fixtures_dir / "original" / "dalle_encoder.npz")


def state_of(arrays):
    return {
        name.removeprefix("sd/"): torch.from_numpy(arrays[name])
        for name in arrays.files
        if name.startswith("sd/")
    }


def module_with_state(tensors, module, class_name, make_conv):
    """A module tree of classes that live in ``module``, as OpenAI's do, holding ``tensors``."""
    root_class = type(class_name, (nn.Module,), {"__module__": module.__name__})
    setattr(module, class_name, root_class)
    root = root_class()
    for name, tensor in tensors.items():
        *parents, leaf = name.split(".")
        node = root
        for depth, part in enumerate(parents):
            if part not in node._modules:
                is_conv = depth == len(parents) - 1
                node.add_module(part, make_conv() if is_conv else nn.Sequential())
            node = node._modules[part]
        node.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    return root


@pytest.fixture
def pickled_encoder(tmp_path, encoder_arrays, monkeypatch):
    """Saves the encoder's tensors as a pickled module of classes that later cannot be imported."""

    def save(name, **options):
        for module_name in ("dall_e", "dall_e.encoder", "dall_e.utils"):
            monkeypatch.setitem(sys.modules, module_name, types.ModuleType(module_name))
        utils = sys.modules["dall_e.utils"]
        utils.Conv2d = type("Conv2d", (nn.Module,), {"__module__": "dall_e.utils"})
        module = module_with_state(
            state_of(encoder_arrays), sys.modules["dall_e.encoder"], "Encoder", utils.Conv2d
        )
        torch.save(module, tmp_path / name, **options)
        for module_name in ("dall_e", "dall_e.encoder", "dall_e.utils"):
            monkeypatch.delitem(sys.modules, module_name)
        return tmp_path / name

    return save


LEGACY = {"_use_new_zipfile_serialization": False}
CONTAINERS = pytest.mark.parametrize("container", [{}, LEGACY], ids=["zip", "legacy"])
# torch cannot find the source of classes made in a test.
SOURCELESS = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")


@SOURCELESS
@CONTAINERS
def test_pickled_modules_of_both_containers(pickled_encoder, encoder_arrays, container):
    path = pickled_encoder("encoder.pkl", **container)
    tensors = read_tensors(path)
    expected = state_of(encoder_arrays)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    np.testing.assert_array_equal(
        DalleTokenizer(str(path)).encode(torch.from_numpy(encoder_arrays["image"])),
        encoder_arrays["tokens"],
    )


@CONTAINERS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_state_dicts_keep_views_and_types(tmp_path, container, dtype):
    base = torch.arange(24).to(dtype)
    state = {"slice": base[4:12:2], "transposed": base.view(4, 6).T, "empty": base[:0]}
    torch.save({**state, "epoch": 3}, tmp_path / "state.pt", **container)
    tensors = read_tensors(tmp_path / "state.pt")
    assert tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert tensors[name].dtype == dtype
        assert torch.equal(tensors[name], tensor)


@pytest.mark.filterwarnings("ignore:.*pickle")
@pytest.mark.parametrize("container", [{}, LEGACY, None], ids=["zip", "legacy", "plain pickle"])
def test_malicious_pickle_is_not_executed(tmp_path, container):
    marker = tmp_path / "executed"

    class Malicious:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    path = tmp_path / "malicious.pkl"
    if container is None:
        path.write_bytes(pickle.dumps(Malicious()))
    else:
        torch.save(Malicious(), path, **container)
    with pytest.raises(ValueError, match="malicious.pkl.*(system|magic number)"):
        DalleTokenizer(str(path))
    assert not marker.exists()
    pickle.loads(pickle.dumps(Malicious()))  # the trap does work
    assert marker.exists()


@SOURCELESS
@CONTAINERS
def test_malicious_attribute_of_a_real_encoder_is_not_executed(
    pickled_encoder, tmp_path, container, monkeypatch, encoder_arrays
):
    marker = tmp_path / "executed"

    class Malicious:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    register = nn.Module.register_parameter

    def register_and_poison(module, name, parameter):
        register(module, name, parameter)
        module.poison = Malicious()

    monkeypatch.setattr(nn.Module, "register_parameter", register_and_poison)
    path = pickled_encoder("poisoned.pkl", **container)
    assert b"system" in path.read_bytes()
    assert read_tensors(path).keys() == state_of(encoder_arrays).keys()
    assert not marker.exists()


@SOURCELESS
@CONTAINERS
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.5, 0.99, 0.9999])
def test_truncated_pickle_is_named(pickled_encoder, tmp_path, container, kept):
    data = pickled_encoder("whole.pkl", **container).read_bytes()
    path = tmp_path / "cut.pkl"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match="cut.pkl: damaged"):
        DalleTokenizer(str(path))


def test_record_outside_its_storage_is_refused(tmp_path):
    # A tensor of 4 elements whose pickle is edited to claim 9: BININT1 4 -> BININT1 9.
    path = tmp_path / "forged.pt"
    torch.save({"w": torch.arange(4.0)}, path, **LEGACY)
    data = path.read_bytes()
    claimed = data.replace(b"K\x04\x85", b"K\x09\x85")
    assert claimed != data
    path.write_bytes(claimed)
    with pytest.raises(ValueError, match="forged.pt: damaged.*storage"):
        read_tensors(path)
