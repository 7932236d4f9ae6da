"""The paper's figures from videos, and pictures from the files of runs."""

import csv
import importlib.util
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_project import make_drawn_project
from made_videos import burnt_number
from matplotlib.image import imread

from vimpac_ext.config import ConfigError
from vimpac_ext.data import SpatialView, VideoReader
from vimpac_ext.data.decode import VideoDecodeError
from vimpac_ext.engine import figures, prepare
from vimpac_ext.engine.figures import ClsAttention
from vimpac_ext.engine.figures.attention import attention_rows
from vimpac_ext.engine.figures.clips import read_clips
from vimpac_ext.engine.figures.copies import copy_shares
from vimpac_ext.engine.figures.frames import FRAME_SIZE, spread_frames
from vimpac_ext.engine.figures.masks import draw_masks
from vimpac_ext.engine.visualize import visualize
from vimpac_ext.evaluation.confusion_plot import save_confusion_plot
from vimpac_ext.maskers import BlockMasker, TubeMasker
from vimpac_ext.registries import MASKERS
from vimpac_ext.structures import VideoRecord
from vimpac_ext.tokenizers import VQVAETokenizer
from vimpac_ext.visualization import RunFileError, nearest_visible, overlay_heat, to_images
from vimpac_ext.visualization.sheet import text_width

ROOT = Path(__file__).resolve().parents[2]
ROW = 34  # first line of pixels below the title
LEFT = 160  # first column right of the labels


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_drawn_project(tmp_path_factory.mktemp("project"))


def tool_main():
    specification = importlib.util.spec_from_file_location("draw", ROOT / "tools/visualize.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main


def load(project, *overrides):
    return prepare(project.config, [*project.overrides, *overrides])


def middle_frames(project):
    with VideoReader(project.videos / "video_0.mp4") as reader:
        return SpatialView.parse("16center16")(reader.frames_at(2.0, [2, 3, 4]))


def tiles(path, rows, side, columns=3, left=LEFT):
    """The images of a written sheet without captions: uint8 (rows, columns, side, side, 3)."""
    picture = (imread(path)[..., :3] * 255).round().astype(np.uint8)
    return np.array(
        [
            [
                picture[top:, start:][:side, :side]
                for start in left + (side + 4) * np.arange(columns)
            ]
            for top in ROW + (side + 4) * np.arange(rows)
        ]
    )


def enlarged(images, side):
    factor = side // images.shape[1]
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


@pytest.fixture
def ours(monkeypatch):
    """The library's maskers alone: other tests register some of their own."""
    parts = {name: part for name, part in MASKERS if part.__module__.startswith("vimpac_ext.")}
    monkeypatch.setattr(MASKERS, "_obj_map", parts)
    return parts


def test_every_masker_hides_its_tokens_and_nothing_else(project, tmp_path, ours):
    path, video = tmp_path / "masks.png", str(project.videos / "video_0.mp4")
    shares = draw_masks(load(project), path, [video], seed=3)
    names = sorted(ours)
    assert list(shares) == names
    assert {"BlockMasker", "TubeMasker", "UniformMasker"} <= set(names)
    drawn = tiles(path, 1 + len(names), 288)
    original = enlarged(middle_frames(project), 288)
    np.testing.assert_array_equal(drawn[0], original)
    tokens = torch.zeros(1, 3, 2, 2, dtype=torch.int64)
    expected = {  # the first has the configuration's argument, the second its defaults
        "BlockMasker": BlockMasker(3)(tokens, torch.Generator().manual_seed(3))[0],
        "TubeMasker": TubeMasker()(tokens, torch.Generator().manual_seed(3))[0],
    }
    for index, name in enumerate(names, 1):
        hidden = (drawn[index] == 128).all(-1) & (original != 128).any(-1)
        np.testing.assert_array_equal(drawn[index][~hidden], original[~hidden])
        assert hidden.mean() == pytest.approx(shares[name], abs=0.01)
        if name in expected:
            mask = expected[name].numpy().repeat(144, axis=1).repeat(144, axis=2)
            assert shares[name] == pytest.approx(mask.mean())
            assert (drawn[index][mask] == 128).all()
            np.testing.assert_array_equal(drawn[index][~mask], original[~mask])


@pytest.mark.parametrize("seed", range(4))
def test_a_video_that_is_too_short_is_masked_as_for_the_model(project, tmp_path, ours, seed):
    """The mask is that of a whole clip, of which the padding is left out."""
    path, video = tmp_path / "masks.png", str(project.videos / "short.mp4")
    shares = draw_masks(load(project), path, [video], seed)
    [shown] = visualize(load(project), tmp_path / "a.png", [video], seed)
    assert len(shown.masked) == 2
    row = 1 + list(shares).index("BlockMasker")
    drawn = tiles(path, row + 1, 288, columns=2)[row]
    np.testing.assert_array_equal(drawn, enlarged(shown.masked, 288))
    assert shares["BlockMasker"] == pytest.approx(shown.mask_ratio)


def test_a_masker_that_needs_arguments_is_named(project, tmp_path, caplog):
    class NeedyMasker:
        def __init__(self, cell: int) -> None:
            self.cell = cell

        def __call__(self, tokens, generator):
            return torch.ones_like(tokens, dtype=torch.bool)

    MASKERS._do_register("NeedyMasker", NeedyMasker)
    try:
        with caplog.at_level(logging.WARNING):
            assert "NeedyMasker" not in draw_masks(load(project), tmp_path / "a.png")
        assert "NeedyMasker is not drawn: MASKER: NeedyMasker needs cell" in caplog.text
        configured = load(project, "MASKER.NAME", "NeedyMasker", "MASKER.cell", "2")
        assert draw_masks(configured, tmp_path / "a.png")["NeedyMasker"] == 1
    finally:
        del MASKERS._obj_map["NeedyMasker"]


def test_copies_are_decoded_and_what_is_seen_stays(project, tmp_path):
    path, video = tmp_path / "copies.png", str(project.videos / "video_0.mp4")
    overrides = ["DATA.TRAIN_CROP_SIZE", "64", "DATA.TEST_CROP_SIZE", "64"]
    results = figures.draw_copies(load(project, *overrides), path, [video], 1, [0.15, 0.45], 4)
    assert [(r.masker, r.ratio, r.num_masks) for r in results] == [
        (masker, ratio, 4) for ratio in (0.15, 0.45) for masker in ("uniform", "block")
    ]
    for result in results:
        assert result.hidden == pytest.approx(result.ratio, abs=0.12)
        assert 0 <= result.space <= 1
        assert 0 <= result.space_time <= 1
    side = 64 * round(640 / (3 * 64))
    left = 20 + text_width("copy in space-time")
    drawn = tiles(path, 2 + 4 * 3, side, left=left)
    tokenizer = VQVAETokenizer(str(project.folder / "tokenizer.safetensors"))
    frames = drawn[0][:, ::3, ::3]
    tokens = tokenizer.encode(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255)

    def decoded(codes):
        return enlarged(to_images(tokenizer.decode(codes)), side)

    np.testing.assert_array_equal(drawn[1], decoded(tokens))
    differ = 0
    for first in range(2, 14, 3):
        masked = drawn[first]
        hidden = (masked == 128).all(-1) & (drawn[0] != 128).any(-1)
        np.testing.assert_array_equal(masked[~hidden], drawn[0][~hidden])
        mask = torch.from_numpy(hidden.reshape(3, 8, 24, 8, 24).mean((2, 4)) > 0.5)
        assert 0 < mask.float().mean() < 0.8
        for copied, spatial in zip(drawn[first + 1 : first + 3], (True, False), strict=True):
            np.testing.assert_array_equal(copied, decoded(nearest_visible(tokens, mask, spatial)))
            differ += (copied != drawn[1]).any()
    assert differ >= 2  # an untrained tokenizer has few codes, so some copies are right


def test_shares_of_right_copies_by_hand():
    tokens = torch.tensor([[[1, 1, 2]], [[1, 3, 2]]])  # two frames of 1 x 3
    masks = torch.zeros(2, 2, 1, 3, dtype=torch.bool)
    masks[0, 0, 0, 1] = True  # a copy of the left 1 is right, whichever frames may be used
    masks[1, :, 0, 2] = True  # in both frames the right end: the neighbours are 1 and 3
    torch.testing.assert_close(
        copy_shares(tokens, masks),
        torch.tensor([[1 / 6, 1, 1], [2 / 6, 0, 0]], dtype=torch.float64),
    )
    masks[1, 1, 0, 2] = False  # now the other frame's 2 is seen, one step away like the left 1
    torch.testing.assert_close(copy_shares(tokens, masks)[1, 1:], torch.zeros(2).double())
    still = torch.tensor([[[1, 2, 3]]]).expand(2, 1, 3)
    hidden = torch.zeros(1, 2, 1, 3, dtype=torch.bool)
    hidden[0, 1] = True  # a whole frame of a still video
    torch.testing.assert_close(copy_shares(still, hidden)[0, 1:], torch.ones(2).double())


def test_ratios_and_numbers_of_masks_are_checked(project, tmp_path):
    with pytest.raises(ValueError, match=r"ratio=1\.5 must be between 0 and 1"):
        figures.draw_copies(load(project), tmp_path / "a.png", ratios=[1.5])
    with pytest.raises(ValueError, match="num_masks=0"):
        figures.draw_copies(load(project), tmp_path / "a.png", num_masks=0)


def test_frames_are_spread_over_the_video(project):
    record = VideoRecord(str(project.videos / "video_0.mp4"), "a")  # 100 frames, 25 a second
    images, seconds = spread_frames(record, 5)
    assert seconds == pytest.approx([0.4, 1.2, 2.0, 2.8, 3.6])
    assert images.shape == (5, FRAME_SIZE, FRAME_SIZE, 3)
    with VideoReader(record.path) as reader:
        originals = reader.frames_at(5 / 4, range(5))
    numbers = [burnt_number(image) for image in originals]
    for number, second in zip(numbers, seconds, strict=True):
        assert abs(number / 25 - second) <= 0.0401
    view = SpatialView(FRAME_SIZE, "center", FRAME_SIZE)
    np.testing.assert_array_equal(images, view(originals))


def test_clips_that_are_spread_over_the_video_are_drawn(project):
    """8 frames in 3 parts: their middles."""
    loaded = load(project, "DATA.SAMPLING", "segments")
    path = project.videos / "video_0.mp4"
    (clip,) = read_clips(loaded, [str(path)])
    with VideoReader(path) as reader:
        assert reader.num_frames_at(2.0) == 8
        images = SpatialView.parse("16center16")(reader.frames_at(2.0, [1, 4, 6]))
    np.testing.assert_array_equal(to_images(clip.frames), images)


def test_rows_of_frames_have_labels(project, tmp_path):
    videos = [str(project.videos / name) for name in ("video_0.mp4", "short.mp4")]
    path = tmp_path / "frames.png"
    assert figures.draw_frames(None, path, videos, ["Opening $x$", "Closing"], 4) == [
        "Opening $x$",
        "Closing",
    ]
    for row, video in enumerate(videos):
        images, _ = spread_frames(VideoRecord(video, "a"), 4)
        scale = max(1, round(840 / (4 * FRAME_SIZE)))
        side = FRAME_SIZE * scale
        top = row * (34 + side + 4 + 20 + 10)
        picture = (imread(path)[..., :3] * 255).round().astype(np.uint8)[top:]
        for column in range(4):
            left = 10 + column * (side + 4)
            shown = picture[34 : 34 + side, left : left + side]
            np.testing.assert_array_equal(shown[::scale, ::scale], images[column])
        assert (picture[:34] < 60).all(-1).sum() > 30  # the label
    # Without videos: one of each class of the data set. Only video_0 is there.
    with pytest.raises(VideoDecodeError, match=r"clips/video_1\.mp4"):
        figures.draw_frames(load(project), path)
    # Of classes without names there are the numbers.
    clips = project.videos / "video_0.mp4"
    (tmp_path / "list.csv").write_text(f"{clips} 2\n{clips.with_name('short.mp4')} 0\n")
    words = ["TRAIN.DATASET.NAME", "PathLabelList", "TRAIN.DATASET.split", "list"]
    loaded = load(project, *words, "TRAIN.DATASET.root", str(tmp_path))
    assert figures.draw_frames(loaded, path) == ["class 0", "class 2"]
    with pytest.raises(ValueError, match="1 labels for 2 videos"):
        figures.draw_frames(None, path, videos, ["one"])
    with pytest.raises(ValueError, match="give videos, or a configuration"):
        figures.draw_frames(None, path)


def test_attention_of_the_trained_model(project, tmp_path):
    videos = [str(project.videos / name) for name in ("video_0.mp4", "short.mp4")]
    path = tmp_path / "attention.png"
    clip, short = figures.draw_attention(load(project), path, videos)
    assert [part.pattern for part in clip] == ["T", "H", "W"]
    assert all((part.tokens[0, :, 2] == 0).all() for part in short)  # padding
    picture = imread(path)[..., :3]
    side = 16 * 18
    rows = [ROW, ROW + side + 4, ROW + 2 * (side + 4) + 20]
    left = 20 + text_width("a frame its share")
    original = (picture[rows[0] :][:side, left:][:, :side] * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(original, enlarged(middle_frames(project), side)[0])
    for row, parts in ((1, clip[:1]), (2, clip[1:2])):
        heat = torch.stack([part.tokens[0].mean(0) for part in parts]).mean(0)
        expected = enlarged(overlay_heat(middle_frames(project), heat), side)
        for frame in range(3):
            shown = picture[rows[row] :][:side, left + frame * (side + 4) :][:, :side]
            np.testing.assert_array_equal((shown * 255).round().astype(np.uint8), expected[frame])
    with pytest.raises(ConfigError, match="no layer 2: the backbone has layers 1 to 1"):
        figures.draw_attention(load(project), path, videos, layer=2)


def test_rows_of_attention_are_of_the_layer_that_was_asked_for():
    """Two layers of two heads, one frame of 1 x 2 tokens and one of padding."""
    images = np.zeros((1, 8, 16, 3), np.uint8)

    def made(layer, pattern, *heads):
        tokens = torch.tensor([[left, right, 0, 0] for _, left, right in heads])
        itself = torch.tensor([own for own, _, _ in heads])
        return ClsAttention(layer, pattern, tokens.view(1, -1, 2, 1, 2), itself[None])

    found = [
        made(1, "T", (0.2, 0.8, 0.0), (0.4, 0.6, 0.0)),
        made(1, "HxW", (0.0, 0.1, 0.9), (0.0, 0.3, 0.7)),
        made(2, "T", (0.5, 0.0, 0.5), (0.5, 0.5, 0.0)),
    ]
    means = {"1T": [0.7, 0.0], "1HxW": [0.2, 0.8], "2T": [0.25, 0.25], "all": [23 / 60, 21 / 60]}

    def heat(name):
        return overlay_heat(images, torch.tensor(means[name]).view(1, 1, 2))

    rows = attention_rows(images, found, 1)
    assert [row.label for row in rows[1:]] == [
        "layer 1, along T\n(30% on CLS)",
        "layer 1, along HxW\n(0% on CLS)",
        "all layers\n(27% on CLS)",  # of 30, 0 and 50
    ]
    np.testing.assert_array_equal(rows[0].images, images)
    for row, name in zip(rows[1:], ("1T", "1HxW", "all"), strict=True):
        np.testing.assert_array_equal(row.images, heat(name))
        assert row.captions == ("100%",)
    _, row, whole = attention_rows(images, found, 2)
    assert row.label == "layer 2, along T\n(50% on CLS)"
    np.testing.assert_array_equal(row.images, heat("2T"))
    assert whole.label == rows[-1].label
    np.testing.assert_array_equal(whole.images, rows[-1].images)


def test_captions_of_attention_are_the_shares_of_frames():
    tokens = torch.tensor([0.1, 0.1, 0.0, 0.3]).view(1, 1, 2, 1, 2)
    found = [ClsAttention(1, "T", tokens, torch.tensor([[0.5]]))]
    rows = attention_rows(np.zeros((2, 8, 16, 3), np.uint8), found, 1)
    assert [row.captions for row in rows] == [(), ("40%", "60%"), ("40%", "60%")]


def test_attention_needs_an_encoder_alone_and_looks_at_the_backbone_first(
    project, tmp_path, monkeypatch
):
    monkeypatch.delattr(VQVAETokenizer, "decode")
    video = str(project.videos / "video_0.mp4")
    assert len(figures.draw_attention(load(project), tmp_path / "a.png", [video])[0]) == 3
    backbone = "{NAME: TimmFrames, model: resnet10t}"
    pixels = ["BACKBONE", backbone, "HEADS.contrast", "null", "LOSSES.contrast", "null"]
    pixels += ["DATA.TOKENS", "online", "TRAIN.TOKEN_STORE", "", "OUTPUT_DIR", "nowhere"]
    with pytest.raises(ConfigError, match="TimmFrames has no axis attention to look at"):
        figures.draw_attention(load(project, *pixels), tmp_path / "b.png", [video])


def test_the_tokenizer_of_other_tokens_is_refused(project, tmp_path):
    other = tmp_path / "other.safetensors"
    VQVAETokenizer(None, vocab_size=20, hidden_dim=8, code_dim=4).save(other)
    with pytest.raises(ValueError, match="tokenizer_fingerprint"):
        figures.draw_attention(load(project, "TOKENIZER.weights", str(other)), tmp_path / "a.png")


def test_the_confusion_matrix_is_that_of_the_file(tmp_path):
    counts, names = np.array([[3, 1], [0, 4]]), ["open, $x$", "close"]
    (tmp_path / "run/test").mkdir(parents=True)
    with (tmp_path / "run/test/confusion.csv").open("w", newline="") as file:
        header = ["true \\ predicted", *names]
        rows = [[name, *row] for name, row in zip(names, counts.tolist(), strict=True)]
        csv.writer(file).writerows([header, *rows])
    figures.draw_run_confusion(tmp_path / "run", tmp_path / "a.png")
    save_confusion_plot(tmp_path / "b.png", counts, names)
    np.testing.assert_array_equal(imread(tmp_path / "a.png"), imread(tmp_path / "b.png"))
    figures.draw_run_confusion(tmp_path / "run/test", tmp_path / "c.png")
    np.testing.assert_array_equal(imread(tmp_path / "a.png"), imread(tmp_path / "c.png"))
    with pytest.raises(FileNotFoundError, match=r"no test result in .*nowhere: looked for"):
        figures.draw_run_confusion(tmp_path / "nowhere", tmp_path / "a.png")
    for text, message in (("x,a\na,1.5\n", "not a whole number"), ("x,a,b\na,1,2\n", "1 rows for")):
        (tmp_path / "run/test/confusion.csv").write_text(text)
        with pytest.raises(RunFileError, match=message):
            figures.draw_run_confusion(tmp_path / "run", tmp_path / "a.png")


def test_curves_say_what_is_missing_and_what_is_left_out(tmp_path, caplog):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("")
    with pytest.raises(FileNotFoundError, match=r"run is not the OUTPUT_DIR of a run that was tr"):
        figures.draw_run_curves([run], tmp_path / "a.png")
    lines = [{"_type": "x", "update": u, "loss": float(v)} for u, v in enumerate((1, "inf", 2))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures.draw_run_curves([run], tmp_path / "a.png")
    assert "run: x/loss (1 value not finite, update 1); drawn without" in caplog.text


def test_the_tool_draws_each_figure(project, tmp_path, capsys):
    main = tool_main()
    video = ["--video", str(project.videos / "video_0.mp4")]
    config = ["--cfg", str(project.config)]
    for name, suffix in (("masks", "gif"), ("copy-paste", "png"), ("attention", "png")):
        words = ["--figure", name, *config, *video, "--output", str(tmp_path / f"{name}.{suffix}")]
        assert main([*words, "--opts", *project.overrides]) == 0
    frames = ["--figure", "frames", *video, "--label", "x", "--output", str(tmp_path / "f.png")]
    assert main(frames) == 0
    run = ["--run", str(project.folder / "pretrain")]
    assert main(["--figure", "curves", *run, "--output", str(tmp_path / "curves.png")]) == 0
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"masks.gif", "copy-paste.png", "attention.png", "f.png", "curves.png"}
    assert min(sizes.values()) > 5000
    capsys.readouterr()
    for words, message in (
        (["--figure", "curves", "--output", "a.png"], r"needs --run DIR [DIR ...]"),
        (["--figure", "confusion", *run, "b", "--output", "a.png"], "needs --run DIR"),
        (["--figure", "curves", *run, "--output", "a.gif"], "must end in .png, found a.gif"),
        (["--figure", "masks", "--output", "a.png"], "--cfg takes one file here"),
        (
            ["--figure", "curves", *config, *run, "--output", "a.png"],
            "[DIR ...] and no --cfg",
        ),
    ):
        with pytest.raises(SystemExit) as error:
            main(words)
        assert error.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        ("masks", "--run a"),
        ("confusion", "--run a --scalar loss"),
        ("reconstruction", "--ratio 0.5"),
        ("attention", "--masks 3"),
        ("copy-paste", "--layer 1"),
        ("masks", "--label x"),
        ("frames", "--seed 1"),
        ("curves", "--run a --video b.mp4"),
    ],
)
def test_options_of_another_figure_are_refused(capsys, figure, words):
    with pytest.raises(SystemExit):
        tool_main()(["--figure", figure, "--output", "a.png", *words.split()])
    option = words.split()[-2]
    assert f"--figure {figure} takes no {option}, only --" in capsys.readouterr().err


def test_options_reach_the_figures(project, tmp_path, capsys):
    """Each changes the picture, or what the log says of it."""
    video = str(project.videos / "video_0.mp4")
    config = ["--cfg", str(project.config), "--video", video]
    overrides = ["--opts", *project.overrides, "DATA.TRAIN_CROP_SIZE", "64"]
    overrides += ["DATA.TEST_CROP_SIZE", "64"]

    def draw(*words):
        path = tmp_path / "a.png"
        assert tool_main()([*words, "--output", str(path), *config, *overrides]) == 0
        return path.read_bytes()

    assert draw("--figure", "masks") == draw("--figure", "masks", "--seed", "0")
    assert draw("--figure", "masks") != draw("--figure", "masks", "--seed", "3")
    capsys.readouterr()
    draw("--figure", "copy-paste", "--ratio", "0.3", "--masks", "2")
    log = capsys.readouterr().out
    assert log.count("means over 2 masks") == 2
    assert "uniform 30 %" in log
    assert "15 %" not in log
