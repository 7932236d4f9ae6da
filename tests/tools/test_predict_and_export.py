"""tools/predict.py and tools/export.py as a user meets them."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from video_project import NUM_TEST, make_video_project, video_config

from vimpac_ext.engine import prepare, run

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = make_video_project(tmp_path_factory.mktemp("project"))
    project.config = video_config(project, "frames")
    run(prepare(project.config))
    return project


def call(tool, *words, cwd):
    return subprocess.run(
        [sys.executable, str(TOOLS / tool), *map(str, words)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_predict_goes_on_after_a_bad_video_and_fails_at_the_end(
    project, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    names = tmp_path / "names.txt"
    names.write_text("rot\ngrün\nblau\n", encoding="utf-8")
    words = ["--cfg", project.config, project.root / "below", "--class_names", names]
    words += ["--json", "out/result.json", "--draw", "drawn", "--top", 1]
    words += ["--checkpoint", project.folder / "frames", "--opts", "OUTPUT_DIR", "elsewhere"]
    assert tool("predict").main(list(map(str, words))) == 1
    shown = capsys.readouterr().out
    assert "error: cannot decode" in shown
    assert f"1 of {NUM_TEST + 1} videos could not be decoded" in shown
    assert sum(shown.count(f"%  {name}\n") for name in ("rot", "grün", "blau")) == NUM_TEST
    content = json.loads((tmp_path / "out/result.json").read_text(encoding="utf-8"))
    assert content["num_bad"] == 1
    assert len(list((tmp_path / "drawn").glob("*.mp4"))) == NUM_TEST
    assert not (tmp_path / "elsewhere").exists()


def test_predict_of_one_video_from_the_command_line(project, tmp_path):
    done = call("predict.py", "--cfg", project.config, project.root / "0.mp4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "decode" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "nowhere"], "no checkpoint in 'nowhere'"),
        (["--class_names", "nowhere.txt"], "nowhere.txt"),
        (["--top", "0"], "at least one class"),
        (["--opts", "TEST.BACH_SIZE", "3"], "did you mean 'TEST.BATCH_SIZE'"),
    ],
)
def test_mistakes_of_predict_are_named(project, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        tool("predict").main(["--cfg", str(project.config), str(project.root / "0.mp4"), *words])
    assert not list(tmp_path.iterdir())


def test_export_writes_what_is_asked_for(project, tmp_path):
    output = tmp_path / "a/features.npz"
    words = ["--cfg", project.config, "TEST.NUM_ENSEMBLE_VIEWS", 1, "--output", output]
    assert tool("export").main([*map(str, words), "--what", "features"]) == 0
    with np.load(output, allow_pickle=False) as file:
        assert file["features"].shape[0] == NUM_TEST
        assert "scores" not in file
        assert json.loads(str(file["protocol"]))["temporal_views"] == 1


def test_export_tells_a_script_that_videos_are_missing(project, tmp_path):
    more = ["TEST.DATASET.split", "with_bad", "DATA.ON_BAD_VIDEO", "count_wrong"]
    words = ["--cfg", str(project.config), *more, "--output", str(tmp_path / "b.npz")]
    assert tool("export").main(words) == 3


def test_every_file_that_the_page_on_evaluation_names_exists():
    page = (TOOLS.parent / "docs/evaluation.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:configs|tools)/[\w/]+\.(?:yaml|py)", page))
    assert len(named) > 5
    for path in named:
        assert (TOOLS.parent / path).is_file(), path
