"""Copy-paste recovery over many videos: numbers by hand, and the paper's claim on real clips."""

import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_project import make_drawn_project
from paper_tables.copies import FIELDS, copies_markdown, copies_section, read_copies

from vimpac_ext.config import ConfigError
from vimpac_ext.data import open_token_dataset
from vimpac_ext.engine import figures, prepare
from vimpac_ext.engine.figures.clips import drawing_tokenizer, read_clips
from vimpac_ext.engine.figures.copies import copy_shares, picture_errors, relative_error
from vimpac_ext.maskers import BlockMasker, UniformMasker
from vimpac_ext.tokenizers import VQVAETokenizer
from vimpac_ext.visualization import nearest_visible

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/vimpac/demo/pretrain.yaml"
CLIPS = ("ucf101_BaseballPitch_g01_c01.avi", "k400_arm_wrestling.mp4", "hiera_dog.mp4")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_drawn_project(tmp_path_factory.mktemp("project"))


def load(project, *overrides):
    return prepare(project.config, [*project.overrides, *overrides])


def test_a_uniform_mask_is_recovered_better_on_real_clips(real_videos):
    """The paper's G.2: in tokens, and far better in the pictures, for 15 % in space."""
    size = ["DATA.TRAIN_CROP_SIZE", "128", "DATA.TEST_CROP_SIZE", "128"]
    videos = [str(real_videos / name) for name in CLIPS]
    loaded = prepare(CONFIG, size)
    results = list(figures.measure_copies(loaded, videos, 0, [0.15], num_masks=4, num_clips=1))
    assert [(r.video, r.masker) for r in results] == [
        (name, masker) for name in CLIPS for masker in ("uniform", "block")
    ]
    for uniform, block in zip(results[::2], results[1::2], strict=True):
        assert uniform.hidden == pytest.approx(0.15, abs=0.03)
        assert block.hidden == pytest.approx(0.15, abs=0.05)
        assert uniform.space > uniform.commonest  # neighbours tell more than the background does
        assert uniform.space > block.space
        assert uniform.error_space < block.error_space - 0.1
    for name in ("error_space", "error_space_time"):
        uniform, block = (
            statistics.fmean(getattr(r, name) for r in results if r.masker == masker)
            for masker in ("uniform", "block")
        )
        assert uniform < block - (0.2 if name == "error_space" else 0)


def test_the_committed_numbers_are_on_many_real_clips_and_show_it():
    files = sorted((ROOT / "projects/vimpac/results").glob("copy_paste_real_videos_*.csv"))
    assert files
    for path in files:
        lines = [line for line in read_copies(path) if line["ratio"] == 0.15]
        means = {
            (masker, name): statistics.fmean(x[name] for x in lines if x["masker"] == masker)
            for masker in ("uniform", "block")
            for name in ("space", "space_time", "error_space", "error_space_time")
        }
        assert len({line["video"] for line in lines}) >= 15
        assert means["uniform", "space"] > means["block", "space"] + 0.05
        assert means["uniform", "error_space"] < means["block", "error_space"] - 0.3
        assert means["uniform", "space_time"] > means["block", "space_time"]
        assert means["uniform", "error_space_time"] < means["block", "error_space_time"] - 0.1


def test_stored_tokens_give_what_their_clips_give(project):
    """Each video's clips, read by another door, under the same masks."""
    loaded = prepare(project.config)  # whatever made the tokens: nothing is drawn
    results = list(figures.measure_copies(loaded, (), 3, [0.4], 6, 2, pictures=False))
    store = open_token_dataset(
        project.folder / "tokens_train", num_frames=3, num_temporal_views=2, labelled=False
    )
    clips = {
        store.records[item["video_index"]].video_id: item["clips"]
        for item in (store[index] for index in range(len(store)))
    }
    assert len(results) == 2 * len(clips) == 16
    maskers = {"uniform": UniformMasker(0.4), "block": BlockMasker(ratio=0.4, grid=(3, 2, 2))}
    for number, (uniform, block) in enumerate(zip(results[::2], results[1::2], strict=True)):
        assert uniform.video == block.video
        seed = int(np.random.default_rng((3, 0, number)).integers(2**62))
        generator = torch.Generator().manual_seed(seed)
        shares = {"uniform": [], "block": []}
        for clip in clips[uniform.video]:
            for kind, masker in maskers.items():
                masks = masker(clip.expand(6, 3, 2, 2), generator).flatten(1)
                masks = masks[masks.any(1) & ~masks.all(1)].reshape(-1, 3, 2, 2)
                shares[kind].append(copy_shares(clip, masks))
        for result in (uniform, block):
            expected = torch.cat(shares[result.masker])
            found = torch.tensor([result.hidden, result.space, result.space_time]).double()
            torch.testing.assert_close(found, expected.mean(0), rtol=1e-5, atol=1e-6)
            assert (result.clips, result.masks) == (2, len(expected))
            assert result.error_space is None
    fewer = list(figures.measure_copies(loaded, num_videos=2, pictures=False))
    assert [result.video for result in fewer] == [r.video for r in results[:4] for _ in (0, 1)]


def test_shares_and_errors_of_one_video_by_hand(project, monkeypatch):
    """One clip, one mask: the numbers are those of the functions for a single mask."""
    mask = torch.zeros(3, 2, 2, dtype=torch.bool)
    mask[0, 0, 0] = mask[2, 1, 1] = True
    monkeypatch.setattr(UniformMasker, "__call__", lambda self, tokens, generator: mask[None])
    video = str(project.videos / "video_0.mp4")
    size = ["DATA.TRAIN_CROP_SIZE", "16"]
    (result, _) = figures.measure_copies(load(project, *size), [video], 0, [0.4], 1, 1)
    tokenizer = drawing_tokenizer(load(project, *size))
    [clip] = read_clips(load(project, *size), [video])
    tokens = tokenizer.encode(clip.frames)
    [[hidden, space, space_time]] = copy_shares(tokens, mask[None]).tolist()
    assert (result.hidden, result.space, result.space_time) == (hidden, space, space_time)
    right = tokenizer.decode(tokens)
    copied = tokenizer.decode(nearest_visible(tokens, mask, True))
    wrong = blank = 0.0
    for frame, row, column in mask.nonzero().tolist():
        part = (frame, slice(None), slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        wrong += (copied[part] - right[part]).square().sum().item()
        mean = right.mean((0, 2, 3))[:, None, None]
        blank += (mean - right[part]).square().sum().item()
    assert result.error_space == pytest.approx(wrong / blank, rel=1e-5)


def test_errors_of_pictures():
    original = torch.zeros(1, 3, 2, 4)
    original[..., 2:] = 1  # the mean is 0.5
    mask = torch.tensor([[[True, False]]])  # 4 pixels of 3 channels
    assert picture_errors(original, original, mask) == (0, 12 * 0.25)
    assert picture_errors(torch.full_like(original, 0.5), original, mask) == (3, 3)
    assert picture_errors(torch.ones_like(original), original, mask) == (12, 3)
    assert [relative_error(*pair) for pair in ((0, 3), (3, 3), (12, 3))] == [0, 1, 4]
    assert [relative_error(0, 0), relative_error(3, 0)] == [0, 1]  # an original of one colour


def test_wrong_numbers_and_tokenizers_are_named(project, monkeypatch):
    def measure(loaded, **options):
        return list(
            figures.measure_copies(loaded, [str(project.videos / "video_0.mp4")], **options)
        )

    with pytest.raises(ValueError, match="num_masks=0 and num_clips=2 must be at least 1"):
        measure(load(project), num_masks=0)
    with pytest.raises(ValueError, match=r"ratio=1\.5 must be between 0 and 1"):
        measure(load(project), ratios=[1.5])
    monkeypatch.delattr(VQVAETokenizer, "decode")
    with pytest.raises(ConfigError, match=r"VQVAETokenizer cannot draw tokens \(no decode\)"):
        measure(load(project))
    assert measure(load(project), pictures=False)[0].error_space is None


def test_the_command_writes_what_results_shows(project, tmp_path):
    script = ROOT / "projects/vimpac/copy_paste.py"
    videos = [str(project.videos / name) for name in ("video_0.mp4", "short.mp4")]
    path = tmp_path / "copy_paste_made_videos.csv"
    words = [
        "--cfg",
        str(project.config),
        "--masks",
        "3",
        "--output",
        str(path),
        "--video",
        *videos,
    ]
    done = subprocess.run(
        [sys.executable, str(script), *words, "--opts", *project.overrides],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    lines = read_copies(path)
    assert tuple(lines[0]) == FIELDS
    assert len(lines) == 2 * 2 * 2
    assert str(project.videos) not in path.read_text()
    section = copies_section(path)
    assert "(made videos)" in section
    assert "2 videos, 2 clips of each" in section
    assert copies_markdown(lines) in section
    assert copies_markdown(lines) in done.stdout
    values = [100 * x["space"] for x in lines if (x["masker"], x["ratio"]) == ("block", 0.45)]
    row = next(x for x in section.splitlines() if x.startswith("| block, 45%"))
    expected = f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
    assert row.split(" | ")[2] == expected
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv is not a file of copy_paste\.py"):
        read_copies(tmp_path / "other.csv")
