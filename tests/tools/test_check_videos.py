"""The command: its three kinds of input, its exit code, its messages."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from made_videos import MadeVideo

TOOL = Path(__file__).resolve().parents[2] / "tools" / "check_videos.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("check_videos_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A list of two videos of which one is missing."""
    root = tmp_path_factory.mktemp("data")
    MadeVideo("a clip.mp4", times=range(10)).write(root)
    (root / "train.csv").write_text("a clip.mp4 0\n")
    (root / "test.csv").write_text("a clip.mp4 0\nmissing.mp4 1\n")
    return root


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_paths(main, root, tmp_path):
    assert main([str(root), "--output", str(tmp_path), "--workers", "1"]) == 0
    assert summary(tmp_path)["num_ok"] == summary(tmp_path)["num_videos"] == 1
    assert main([str(root / "a clip.mp4"), str(root / "no.mp4"), "--output", str(tmp_path)]) == 1
    assert summary(tmp_path)["num_kept_from_before"] == 1


def test_data_set_and_configuration(main, root, tmp_path):
    arguments = ["--dataset", "PathLabelList", str(root), "split=test", "--output", str(tmp_path)]
    assert main(arguments) == 1
    (bad,) = (tmp_path / "bad_videos.jsonl").read_text().splitlines()
    assert json.loads(bad)["video_id"] == "missing"
    tree = {
        "TASK": "FinetuneTask",
        "DATA": {"PATH_TO_DATA_DIR": str(root)},
        "TRAIN": {"DATASET": {"NAME": "PathLabelList", "split": "train"}},
        "TEST": {"DATASET": {"NAME": "PathLabelList", "split": "test"}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    arguments = ["--cfg", str(tmp_path / "config.yaml"), "--output", str(tmp_path)]
    assert main(arguments) == 1
    assert summary(tmp_path)["num_videos"] == 2  # the one of both splits counts once
    assert main([*arguments, "--opts", "TEST.ENABLE", "False"]) == 0


def test_wrong_arguments(main, root, capsys):
    with pytest.raises(ValueError, match=r"UCF11.*UCF101"):
        main(["--dataset", "UCF11", str(root)])
    with pytest.raises(ValueError, match="'test' is not of the form key=value"):
        main(["--dataset", "PathLabelList", str(root), "test"])
    with pytest.raises(ValueError, match="split"):
        main(["--dataset", "PathLabelList", str(root), "splits=test"])
    for arguments, message in (([], "what to check"), (["--cfg", "a.yaml", "--", "b"], "no paths")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
