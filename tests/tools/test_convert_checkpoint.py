"""The conversion tool as a user meets it."""

import hashlib
import runpy
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = ROOT / "tests/fixtures/original/checkpoint/last"


TOOL = ROOT / "tools/convert_checkpoint.py"


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Runs the tool in ``tmp_path``; returns exit code, output and errors."""

    def run(*words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(TOOL), *words])
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(TOOL), run_name="__main__")
        return exit_info.value.code, *capsys.readouterr()

    return run


def test_a_released_zip_there_and_back(tmp_path, convert):
    with zipfile.ZipFile(tmp_path / "small.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in SNAPSHOT.iterdir():
            archive.write(file, f"small/last/{file.name}")
    code, output, _ = convert("small.zip", "small.pyth")
    assert code == 0
    expected = [
        "read small.zip/small/last/classifier.pt",
        hashlib.sha256((SNAPSHOT / "classifier.pt").read_bytes()).hexdigest(),
        hashlib.sha256((tmp_path / "small.pyth").read_bytes()).hexdigest(),
        "pre-trained: clips of 5 x 16 x 16 tokens, 60 codes",
        "58,449 parameters",
        "layout=T,H,W",
        "halve_attention=True",
        "epochs done: 4, updates: 2",
        "moments of 42 parameters",
        "ignored: mlm_head.decoder.weight, mlm_head.decoder.bias",
    ]
    for text in expected:
        assert text in output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.pyth", "small.yaml", "small.zip"]
    code, _, _ = convert("small.pyth", "snap/last", "--to", "original")
    assert code == 0
    found = {p.name for p in (tmp_path / "snap/last").iterdir()}
    assert found == {p.name for p in SNAPSHOT.iterdir()}


def test_what_nothing_tells_can_be_given(tmp_path, convert):
    data = np.load(SNAPSHOT.parent.parent / "backbone_t_hw_square.npz")
    state = {k[3:]: torch.tensor(data[k]) for k in data.files if k.startswith("sd/")}
    torch.save(state, tmp_path / "odd.pt")
    assert "give num_heads" in convert("odd.pt", "odd.pyth")[2]
    code, output, _ = convert("odd.pt", "odd.pyth", "--num-heads", "4", "--layout", "T,W|H")
    assert code == 0
    assert "layout=T,W|H" in output
    assert "backbone only" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.zip", "a.pyth"], "no such file or folder: nowhere.zip"),
        (["broken.zip", "a.pyth"], "broken.zip: damaged"),
        (["broken.zip", "there.pyth"], "there.pyth exists already; --overwrite replaces it"),
        (["broken.zip", "snap", "--to", "original"], "broken.zip is damaged"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(tmp_path, convert, words, message):
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "there.pyth").write_text("mine")
    code, _, errors = convert(*words)
    assert code == 1
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.zip", "there.pyth"]
    assert (tmp_path / "there.pyth").read_text() == "mine"
