"""Inputs and outputs in remote storage, which a plug-in's path handler makes reachable."""

import json
import logging
import shutil
import signal

import pytest
import torch
import yaml
from processes import in_processes
from test_resume import BASE, flip_a_byte, lines, require_same_run, start
from tiny_project import make_tiny_project

from vimpac_ext.config import ConfigError
from vimpac_ext.engine import prepare, run
from vimpac_ext.engine.checkpoint import CheckpointError, find_checkpoint
from vimpac_ext.engine.remote import Mirror
from vimpac_ext.files import local_folder, remote_names, sha256_of
from vimpac_ext.tokenizers import VQVAETokenizer

PLUGIN = ["PLUGINS", "[fake_storage]"]


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """What fake:// and moving:// URLs stand for."""
    monkeypatch.setenv("FAKE_STORAGE", str(tmp_path / "storage"))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "storage").mkdir()
    import fake_storage  # noqa: F401

    return tmp_path / "storage"


@pytest.fixture
def project(tmp_path):
    return make_tiny_project(tmp_path)


@pytest.mark.parametrize(
    ("scheme", "size"), [("moving", 1), pytest.param("fake", 2, marks=pytest.mark.slow)]
)
def test_another_machine_continues_bit_for_bit(project, tmp_path, storage, scheme, size):
    config = project / "pretrain.yaml"
    overrides = [*BASE, *PLUGIN, "TRAIN.CHECKPOINT_PERIOD_STEPS", "3", "OUTPUT_DIR"]
    start(config, [*overrides, str(tmp_path / "whole")], size)
    overrides += [str(tmp_path / "broken"), "REMOTE_DIR", f"{scheme}://runs/a"]
    overrides += ["TRAIN.KEEP_CHECKPOINTS", "2"]
    ended = start(config, overrides, size, 0, signal.SIGKILL, 8)
    assert ended[0].code == -signal.SIGKILL
    remote = storage / "runs/a"
    names = sorted(path.name for path in (remote / "checkpoints").iterdir())
    kept = ["checkpoint_epoch_00002.pyth", "checkpoint_epoch_00003.pyth"]
    assert names == kept
    shutil.rmtree(tmp_path / "broken")  # as if on another machine
    ended = start(config, overrides, size)
    assert [process.code for process in ended] == [0] * size, ended
    require_same_run(tmp_path / "broken", tmp_path / "whole")
    for path in (tmp_path / "broken").rglob("*.*"):
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".lock":
            copied = remote / path.relative_to(tmp_path / "broken")
            assert copied.read_bytes() == path.read_bytes(), path
    assert "took checkpoint_epoch_00003.pyth" in ended[0].out


def test_a_damaged_copy_is_passed_over(project, tmp_path, storage, caplog):
    caplog.set_level(logging.INFO)
    overrides = [*BASE, *PLUGIN, "REMOTE_DIR", "fake://run", "OUTPUT_DIR", str(tmp_path / "run")]
    run(prepare(project / "pretrain.yaml", overrides))
    expected = lines(tmp_path / "run")
    flip_a_byte(storage / "run/checkpoints/checkpoint_epoch_00006.pyth")
    shutil.rmtree(tmp_path / "run")
    run(prepare(project / "pretrain.yaml", overrides))
    assert "took checkpoint_epoch_00004.pyth" in caplog.text
    assert "is damaged" in caplog.text
    assert lines(tmp_path / "run") == expected


def test_a_run_that_begins_anew_does_not_mix_with_remote_checkpoints(project, tmp_path, storage):
    overrides = [*PLUGIN, "REMOTE_DIR", "fake://run", "OUTPUT_DIR", str(tmp_path / "run")]
    run(prepare(project / "pretrain.yaml", overrides))
    before = sorted(path.name for path in (storage / "run/checkpoints").iterdir())
    with pytest.raises(CheckpointError, match="fake://run has checkpoints that .* of its own"):
        run(prepare(project / "pretrain.yaml", [*overrides, "TRAIN.AUTO_RESUME", "False"]))
    for folder in (tmp_path / "run/checkpoints", storage / "run/checkpoints"):
        assert sorted(path.name for path in folder.iterdir()) == before
    assert len(lines(tmp_path / "run")) == 4


def test_what_the_run_has_passed_over_does_not_count_as_kept(tmp_path, storage):
    """The last of storage is damaged, and the run has saved the one before it again."""
    remote, here = storage / "run/checkpoints", tmp_path / "out/checkpoints"
    for folder in (remote, here):
        folder.mkdir(parents=True)
    for epoch in (1, 2, 6):
        (remote / f"checkpoint_epoch_0000{epoch}.pyth").write_bytes(b"old")
    (here / "checkpoint_epoch_00003.pyth").write_bytes(b"new")
    mirror = Mirror(tmp_path / "out", "fake://run")
    mirror.push(2, newest="checkpoint_epoch_00003.pyth")
    names = sorted(path.name for path in remote.iterdir())
    assert names == [f"checkpoint_epoch_0000{epoch}.pyth" for epoch in (2, 3, 6)]
    mirror.push(2)
    names = sorted(path.name for path in remote.iterdir())
    assert names == [f"checkpoint_epoch_0000{epoch}.pyth" for epoch in (3, 6)]


def test_newer_work_of_this_machine_is_kept(tmp_path, storage):
    remote = storage / "run/checkpoints"
    remote.mkdir(parents=True)
    (remote / "checkpoint_epoch_00003.pyth").write_bytes(b"old")
    here = tmp_path / "out/checkpoints"
    here.mkdir(parents=True)
    (here / "checkpoint_epoch_00003_update_00000007.pyth").write_bytes(b"new")
    Mirror(tmp_path / "out", "fake://run").fetch()
    assert [path.name for path in here.iterdir()] == ["checkpoint_epoch_00003_update_00000007.pyth"]


def test_lost_storage_delays_the_copy_and_fails_the_end(project, tmp_path, storage, monkeypatch):
    overrides = [*BASE, *PLUGIN, "REMOTE_DIR", "fake://run", "OUTPUT_DIR", str(tmp_path / "run")]
    loaded = prepare(project / "pretrain.yaml", overrides)
    monkeypatch.setenv("FAKE_STORAGE_IS_DOWN", "1")
    with pytest.raises(OSError, match="cannot write fake://run/config.yaml"):
        run(loaded)
    assert len(lines(tmp_path / "run")) == 12  # it went on to the end
    monkeypatch.delenv("FAKE_STORAGE_IS_DOWN")
    run(loaded)  # nothing is left but to copy
    names = [path.name for path in (storage / "run/checkpoints").iterdir()]
    assert len(names) == 3
    record = json.loads((tmp_path / "run/.mirrored.json").read_text())
    assert record["remote"] == "fake://run"


def fetch_same(folder, digest):
    path = folder / "checkpoints/checkpoint_epoch_00001.pyth"
    Mirror(folder, "fake://run").fetch_same(path, digest)
    return path.read_bytes()


def test_processes_of_another_machine_take_the_main_ones_checkpoint(tmp_path, storage):
    remote = storage / "run/checkpoints"
    remote.mkdir(parents=True)
    (remote / "checkpoint_epoch_00001.pyth").write_bytes(b"right")
    here = tmp_path / "out/checkpoints"
    here.mkdir(parents=True)
    (here / "checkpoint_epoch_00001.pyth").write_bytes(b"of an older run")
    results = in_processes(2, fetch_same, tmp_path / "out", sha256_of(b"right"))
    assert results == [b"right", b"right"]
    with pytest.raises(OSError, match="is not the main process's"):
        fetch_same(tmp_path / "out", sha256_of(b"another"))


def run_in(config, words, folders):
    """A process with a disk of its own."""
    run(prepare(config, [*words, "OUTPUT_DIR", str(folders[torch.distributed.get_rank()])]))


def test_a_second_machine_continues_from_the_checkpoint_of_the_first(project, tmp_path, storage):
    config, name = project / "pretrain.yaml", "checkpoints/checkpoint_epoch_00001.pyth"
    words = [*PLUGIN, "REMOTE_DIR", "fake://run", "SOLVER.MAX_EPOCH"]
    folders = [tmp_path / "one", tmp_path / "two"]
    run(prepare(config, [*words, "1", "OUTPUT_DIR", str(folders[0])]))
    in_processes(2, run_in, config, [*words, "2"], folders)
    assert (folders[1] / name).read_bytes() == (folders[0] / name).read_bytes()
    assert [line["update"] for line in lines(folders[0])] == [1, 2, 3, 4]


def test_configs_stores_and_weights_may_be_remote(project, tmp_path, storage):
    """The same run from copies in storage; the config's base is in the folder above it."""
    run(prepare(project / "pretrain.yaml"))
    here = run(prepare(project / "finetune.yaml"))
    shutil.copytree(tmp_path / "tokens_train", storage / "stores/train")
    shutil.copytree(tmp_path / "pretrain", storage / "runs/pretrain")
    (storage / "configs/more").mkdir(parents=True)
    shutil.copy(project / "finetune.yaml", storage / "configs/base.yaml")
    changed = {
        "_BASE_": ["../base.yaml"],
        "OUTPUT_DIR": str(tmp_path / "again"),
        "TRAIN": {
            "TOKEN_STORE": "fake://stores/train",
            "CHECKPOINT_FILE_PATH": "fake://runs/pretrain",
        },
    }
    (storage / "configs/more/a.yaml").write_text(yaml.safe_dump(changed))
    found = run(prepare("fake://configs/more/a.yaml", plugins=["fake_storage"]))
    assert found == here
    assert lines(tmp_path / "again") == lines(tmp_path / "finetune")
    one = "fake://runs/pretrain/checkpoints/checkpoint_epoch_00001.pyth"
    assert find_checkpoint(one).name == "checkpoint_epoch_00001.pyth"


def test_tokenizer_weights_may_be_remote(storage):
    tokenizer = VQVAETokenizer(weights=None, vocab_size=8, hidden_dim=8, code_dim=4)
    tokenizer.save(storage / "vq.safetensors")
    assert VQVAETokenizer("fake://vq.safetensors").fingerprint == tokenizer.fingerprint


def test_a_folder_is_downloaded_once_and_whole(storage, tmp_path):
    (storage / "a/b").mkdir(parents=True)
    (storage / "a/one").write_text("1")
    (storage / "a/b/two").write_text("2")
    folder = local_folder("fake://a")
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*")} == {"one", "b", "b/two"}
    shutil.rmtree(storage / "a")
    assert (local_folder("fake://a/") / "b/two").read_text() == "2"
    assert remote_names("fake://a") == []
    with pytest.raises(FileNotFoundError, match="nothing in fake://c"):
        local_folder("fake://c")


def test_mistakes_are_named(project, storage):
    config = project / "finetune.yaml"
    with pytest.raises(ConfigError, match="REMOTE_DIR takes a copy"):
        prepare(config, ["OUTPUT_DIR", "fake://run"])
    with pytest.raises(ConfigError, match="REMOTE_DIR in .* must be empty or a URL"):
        prepare(config, ["REMOTE_DIR", "run"])
    stages = ["TRAIN.STAGES", "[{SOLVER.MAX_EPOCH: 1}]"]
    with pytest.raises(ConfigError, match="REMOTE_DIR takes a copy"):
        prepare(config, ["OUTPUT_DIR", "fake://run", *stages])
    with pytest.raises(FileNotFoundError, match="no checkpoint: fake://runs is neither"):
        find_checkpoint("fake://runs")
    with pytest.raises(FileNotFoundError, match="unheard://a.pyth: there is no handler.*https://"):
        find_checkpoint("unheard://a.pyth")
    with pytest.raises(FileNotFoundError, match="cannot be listed; give the URL of a file"):
        find_checkpoint("https://example.org/runs")
    loaded = prepare(config, ["TRAIN.CHECKPOINT_FILE_PATH", "fake://runs"])
    with pytest.raises(FileNotFoundError, match=r"CHECKPOINT_FILE_PATH: .*fake://runs is neither"):
        run(loaded)
