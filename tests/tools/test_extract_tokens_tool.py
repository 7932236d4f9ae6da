"""tools/extract_tokens.py on finished stores, and its options."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_project import make_tiny_project

from vimpac_ext.data import TokenStore
from vimpac_ext.data.synthetic import encode_webm

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def main():
    """The tool's entry point, without starting Python anew each time."""
    path = ROOT / "tools" / "extract_tokens.py"
    spec = importlib.util.spec_from_file_location("extract_tokens_tool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def store(tmp_path):
    make_tiny_project(tmp_path)
    return tmp_path / "tokens_test"


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_verify_and_repair(main, store, capsys):
    assert main(["--verify", str(store)]) == 0
    assert "8 videos with 48 frames are whole, 0 problems" in capsys.readouterr().out
    file = store / "shard_00000" / "data.mdb"
    frame = TokenStore(store).read("clips/video_2", "16top16", [4]).astype("u1").tobytes()
    file.write_bytes(file.read_bytes().replace(frame, frame[::-1]))
    assert main(["--verify", str(store), "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert {problem["video_id"] for problem in problems} == {"clips/video_2"}
    assert main(["--verify", str(store), "--repair"]) == 1
    assert f"put aside, to be deleted: {store}/damaged_shard_00000" in capsys.readouterr().out
    assert main(["--verify", str(store)]) == 0
    assert "7 videos with 42 frames are whole" in capsys.readouterr().out


def test_statistics(main, store, capsys):
    assert main(["--stats", str(store)]) == 0
    assert "16center16" in capsys.readouterr().out
    assert main(["--stats", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_frames"] == 48


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of --cfg, --verify and --stats is required"),
        (["--verify", "a", "--stats", "b"], "one of --cfg, --verify and --stats"),
        (["--stats", "a", "--repair"], "--repair goes with --verify"),
    ],
)
def test_wrong_options(main, capsys, words, message):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_not_a_store(main, tmp_path):
    for option in ("--verify", "--stats"):
        with pytest.raises(ValueError, match="is not a token store"):
            main([option, str(tmp_path)])


def test_exit_code_tells_of_failed_videos(main, tmp_path, capsys):
    project = make_tiny_project(tmp_path)
    clips = tmp_path / "data" / "clips"
    clips.mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    for number in range(8):
        (clips / f"video_{number}.mp4").write_bytes(encode_webm(frames, fps=2))
    words = ["--cfg", str(project / "pretrain.yaml"), "TOKENIZER.NAME", "VQVAETokenizer"]
    words += ["DATA.VOCAB_SIZE", "64", "TRAIN.TOKEN_STORE", str(tmp_path / "new")]
    words += ["DATA.ON_BAD_VIDEO", "skip"]
    assert main(words) == 0
    (clips / "video_3.mp4").write_bytes(b"no video")
    words[words.index(str(tmp_path / "new"))] = str(tmp_path / "newer")
    assert main([*words, "--num_shards", "2", "--shard_id", "1"]) == 3
    assert main([*words, "--num_shards", "2", "--shard_id", "0"]) == 0
    output = capsys.readouterr().out
    assert "1 failed\n  clips/video_3: cannot decode" in output
    summary = json.loads((tmp_path / "newer" / "extraction_00001.json").read_text())
    assert [bad["video_id"] for bad in summary["bad_videos"]] == ["clips/video_3"]
    assert summary["num_extracted"] == 3
    with pytest.raises(ValueError, match="give both or none"):
        main([*words, "--shard_id", "0"])
