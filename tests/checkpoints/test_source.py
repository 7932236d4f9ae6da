"""Files of strangers: damaged ones are named, malicious ones are not executed."""

import argparse
import os
import pickle
import random
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from vimpac_ext.checkpoints import OriginalCheckpointError, load_original, read_original
from vimpac_ext.untrusted import is_plain, load_namespace

SNAPSHOT = Path(__file__).resolve().parent.parent / "fixtures" / "original" / "checkpoint" / "last"
LEGACY = {"_use_new_zipfile_serialization": False}


@pytest.fixture
def snapshot(tmp_path):
    folder = tmp_path / "last"
    shutil.copytree(SNAPSHOT, folder)
    return folder


class Malicious:
    """Creates the file ``marker`` when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def plain_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


WRITERS = {
    "zip": torch.save,
    "legacy": lambda content, path: torch.save(content, path, **LEGACY),
    "plain pickle": plain_pickle,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ["classifier.pt", "optimizer.pt", "scheduler.pt"])
@pytest.mark.parametrize("in_zip", [False, True], ids=["folder", "released zip"])
def test_a_malicious_file_is_not_executed(snapshot, tmp_path, name, writer, in_zip):
    marker = tmp_path / "executed"
    content = {"state": Malicious(marker), "backbone.cls_param": torch.zeros(3)}
    WRITERS[writer](content, snapshot / name)
    source = snapshot
    if in_zip:
        source = tmp_path / "small.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for file in snapshot.iterdir():
                archive.write(file, f"small/last/{file.name}")
    with pytest.raises(OriginalCheckpointError, match=f"{name}: damaged, or holds more"):
        read_original(source, with_optimizer=True)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Malicious(marker)))  # the trap does work
    assert marker.exists()


class Disguised(argparse.Namespace):
    """Looks like a namespace, and is built by calling something else."""

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_malicious_options_are_not_executed(snapshot, tmp_path):
    marker = tmp_path / "executed"
    options = [
        Malicious(marker),
        Disguised(marker=marker),
        argparse.Namespace(layers=1, model=Malicious(marker)),
        argparse.Namespace(**{"__setstate__": Malicious(marker)}),
    ]
    for content in options:
        (snapshot / "args.pickle").write_bytes(pickle.dumps(content))
        with pytest.raises(OriginalCheckpointError, match="args.pickle: .*system.*not executed"):
            load_original(snapshot)
    # By opcode: a global of the builtins, called with arguments.
    code = f"cbuiltins\neval\n(S'open({str(marker)!r}, \"w\")'\ntR."
    (snapshot / "args.pickle").write_bytes(code.encode())
    with pytest.raises(OriginalCheckpointError, match="args.pickle: .*builtins.eval"):
        load_original(snapshot)
    (snapshot / "args.pickle").unlink()
    (snapshot / "args.txt").write_text(f"open({str(marker)!r}, 'w')")
    with pytest.raises(OriginalCheckpointError, match="args.txt: not a printed dict"):
        load_original(snapshot)
    assert not marker.exists()


def test_options_of_other_types_are_refused(snapshot):
    cases = {
        "not an argparse.Namespace but a dict": {"layers": 1},
        "'sizes' is not a plain value": argparse.Namespace(sizes={1, 2}),
        "asks for pathlib": argparse.Namespace(output=Path("snap")),
    }
    for message, content in cases.items():
        (snapshot / "args.pickle").write_bytes(pickle.dumps(content))
        with pytest.raises(OriginalCheckpointError, match=f"args.pickle: .*{message}"):
            load_original(snapshot)
    (snapshot / "args.pickle").write_bytes(bytes(2_000_000))
    with pytest.raises(OriginalCheckpointError, match="args.pickle is too large"):
        load_original(snapshot)


def test_plain_values():
    assert is_plain({"a": [1, 2.5, None, (True, "x")]})
    assert not is_plain({"a": [b"bytes"]})
    nested = []
    nested.append(nested)  # endless
    assert not is_plain(nested)


def test_the_options_of_the_authors_are_read():
    with (SNAPSHOT / "args.pickle").open("rb") as file:
        options = load_namespace(file)
    assert options["model"] == "efflayoutT,H,W"
    assert options["epoch"] == 3
    files = read_original(SNAPSHOT, with_optimizer=True)
    assert files.arguments == options
    assert len(files.optimizer["state"]) == 54
    assert files.scheduler["last_epoch"] == 2
    assert read_original(SNAPSHOT).optimizer is None


def test_a_zip_is_read_in_place_whatever_its_names_say(tmp_path):
    path = tmp_path / "sly.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in SNAPSHOT.iterdir():
            archive.write(file, f"../../last/{file.name}")
        archive.writestr("../../outside", "x")
        archive.writestr("__MACOSX/last/._classifier.pt", "x")
    assert read_original(path).arguments["layers"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sly.zip"]
    assert not (tmp_path.parent.parent / "outside").exists()


DAMAGE = {
    "empty": lambda path, data: path.write_bytes(b""),
    "cut at the start": lambda path, data: path.write_bytes(data[:50]),
    "cut in the middle": lambda path, data: path.write_bytes(data[: len(data) // 2]),
    "cut at the end": lambda path, data: path.write_bytes(data[:-30]),
    "text": lambda path, data: path.write_text("<html>404 Not Found</html>"),
    "zeros": lambda path, data: path.write_bytes(bytes(1000)),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_weights_are_named(snapshot, how):
    path = snapshot / "classifier.pt"
    DAMAGE[how](path, path.read_bytes())
    with pytest.raises(OriginalCheckpointError, match=re.escape(str(path))):
        load_original(snapshot)
    with pytest.raises(OriginalCheckpointError, match=re.escape(str(path))):
        load_original(path)


@pytest.mark.parametrize("name", ["classifier.pt", "optimizer.pt", "args.pickle"])
@pytest.mark.parametrize("container", [{}, LEGACY], ids=["zip", "legacy"])
def test_flipped_bytes_end_in_one_kind_of_error_or_in_a_model(snapshot, name, container):
    """What cannot be noticed (a changed weight) may load; nothing may crash otherwise."""
    path = snapshot / name
    if name != "args.pickle" and container:
        torch.save(torch.load(path, weights_only=True), path, **container)
    data = path.read_bytes()
    generator = random.Random(0)
    errors = []
    # The structure is at the ends of the files; their middle is numbers.
    places = [*range(min(600, len(data))), *range(max(0, len(data) - 600), len(data))]
    for _ in range(60):
        flipped = bytearray(data)
        for place in generator.sample(places, 3):
            flipped[place] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        try:
            read_original(snapshot, with_optimizer=True)
        except OriginalCheckpointError as error:
            errors.append(str(error))
    assert len(errors) > 5
    assert all(name in error for error in errors)


def test_a_damaged_zip_is_named(snapshot, tmp_path):
    path = tmp_path / "small.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(snapshot / "classifier.pt", "last/classifier.pt")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # wrong check sum
    path.write_bytes(data)
    with pytest.raises(OriginalCheckpointError, match=r"small.zip/last/classifier.pt.*CRC"):
        load_original(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(snapshot / "classifier.pt", "last/classifier.pt")
    compressed = bytearray(path.read_bytes())
    compressed[len(compressed) // 2 : len(compressed) // 2 + 50] = bytes(50)
    path.write_bytes(compressed)
    with pytest.raises(OriginalCheckpointError, match=r"small.zip/last/classifier.pt cannot be"):
        load_original(path)
    path.write_bytes(data[:-100])  # the download broke off
    with pytest.raises(OriginalCheckpointError, match="small.zip: damaged"):
        load_original(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(OriginalCheckpointError, match="no classifier.pt in it; it holds readme"):
        load_original(path)


def state():
    return torch.load(SNAPSHOT / "classifier.pt", weights_only=True)


def without(*keys):
    return {key: value for key, value in state().items() if key not in keys}


LAYER = "backbone.transformer.resblocks.0"
WRONG_STATES = {
    "is not a state dict but a Tensor": lambda: torch.zeros(3),
    "is not a state dict: 'epoch' is a int": lambda: {"epoch": 3},
    "is a checkpoint of this library already": lambda: {"model_state": {}, "cfg": ""},
    "layer4.weight is not a weight of the original": lambda: {"layer4.weight": torch.zeros(3)},
    "cls_token .* is missing": lambda: without("backbone.cls_param"),
    "layers.0.mlp.norm.bias is missing": lambda: without(f"{LAYER}.ln.bias"),
    "a query, key or value .* is missing": lambda: without(
        f"{LAYER}.attention_blocks.0.attentions.0.attention.key.weight"
    ),
    "differ in shape": lambda: {
        **state(),
        f"{LAYER}.attention_blocks.0.attentions.0.attention.key.weight": torch.zeros(31, 64),
    },
    r"mlp.norm.bias is \(63,\) in place of \(64,\)": lambda: {
        **state(),
        f"{LAYER}.ln.bias": torch.zeros(63),
    },
    "MLP has a width of 100": lambda: {
        **state(),
        f"{LAYER}.mlp.c_fc.weight": torch.zeros(100, 64),
    },
    "decoder.weight differs from": lambda: {
        **state(),
        "mlm_head.decoder.weight": torch.zeros(65, 64),
    },
    "keys both with and without 'module.'": lambda: {
        **state(),
        "module.cls_head.mlp.bn_0.bias": torch.zeros(16),
    },
    "query.bias is there twice": lambda: {
        **state(),
        f"{LAYER}.attention_blocks.0.attentions.0.attention.query.bias".removeprefix(
            "backbone."
        ): torch.zeros(32),
    },
    "cls_param is there twice": lambda: {**state(), "cls_param": torch.zeros(64)},
    "has type torch.int64": lambda: {**state(), "backbone.cls_param": torch.zeros(64).long()},
    "no room for a vocabulary": lambda: {
        **without("mlm_head.decoder.weight"),
        "backbone.embedding.weight": torch.zeros(5, 64),
    },
    "position tables are unknown: cls, frames, height": lambda: without(
        "backbone.positional_embedding.width_pos_embedding"
    ),
    "it has no backbone": lambda: {"cls_fc.weight": torch.zeros(2, 3)},
    "no attention blocks": lambda: {
        key: value for key, value in state().items() if "attention_blocks" not in key
    },
    "layers have attention blocks of": lambda: {
        key.replace(LAYER, "backbone.transformer.resblocks.1") if "blocks.2" in key else key: value
        for key, value in state().items()
    },
}


@pytest.mark.parametrize("message", WRONG_STATES)
def test_other_weights_are_refused_with_the_reason(tmp_path, message):
    path = tmp_path / "other.pt"
    torch.save(WRONG_STATES[message](), path)
    with pytest.raises(OriginalCheckpointError, match=f"other.pt.*{message}"):
        load_original(path)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder: .*nowhere.zip"):
        load_original(tmp_path / "nowhere.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OriginalCheckpointError, match="empty has no classifier.pt in it"):
        load_original(tmp_path / "empty")
