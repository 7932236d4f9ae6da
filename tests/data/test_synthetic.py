"""The demo data: reproducible, in the official format, and only readable from the order."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vimpac_ext.data.synthetic import (
    MotionClass,
    encode_webm,
    labelled_clip,
    make_demo_data,
    motion_classes,
    unlabelled_clip,
)
from vimpac_ext.data.synthetic_motion import (
    MOTION_PAIRS,
    MotionTask,
    class_path,
    wandering_path,
)

TASK = MotionTask()
REPOSITORY = Path(__file__).resolve().parents[2]
COUNTS = {"num_train": 12, "num_validation": 10, "num_unlabelled": 3}
# What each motion's forward class increases, steadily.
MOVING_QUANTITY = {
    "horizontal": "x",
    "vertical": "y",
    "depth": "radius",
    "rotation": "angle",
    "visibility": "opacity",
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "data"
    make_demo_data(root, seed=3, num_workers=0, **COUNTS)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def decode(source) -> np.ndarray:
    with av.open(source) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def read_json(path: Path):
    return json.loads(path.read_text())


def test_bytes_depend_on_the_seed_and_not_on_the_workers(demo, tmp_path):
    again = tmp_path / "again"
    result = make_demo_data(again, seed=3, num_workers=2, **COUNTS)
    assert (result.num_written, result.num_kept) == (25, 0)
    assert contents(again) == contents(demo)
    make_demo_data(tmp_path / "other", seed=4, num_workers=0, **COUNTS)
    other = contents(tmp_path / "other")
    assert other.keys() == contents(demo).keys()
    assert all(other[name] != content for name, content in contents(demo).items() if "webm" in name)


def test_official_annotation_format(demo):
    names = read_json(demo / "labels/labels.json")
    assert list(names) == sorted(names)
    assert list(names.values()) == [str(i) for i in range(10)]
    assert set(names) == {
        template.replace("[something]", "something")
        for pair in MOTION_PAIRS.values()
        for template in pair
    }
    ids = []
    for split, count in (("train", 12), ("validation", 10)):
        entries = read_json(demo / f"labels/{split}.json")
        assert len(entries) == count
        ids += [entry["id"] for entry in entries]
        templates = Counter(entry["template"] for entry in entries)
        assert max(templates.values()) - min(templates.values()) <= 1
        for entry in entries:
            assert set(entry) == {"id", "label", "template", "placeholders"}
            assert entry["template"].replace("[something]", "something") in names
            filled = entry["template"].replace("[something]", entry["placeholders"][0])
            assert entry["label"].lower() == filled.lower()
            assert entry["label"][0].islower()
    assert read_json(demo / "labels/test.json") == []
    videos = demo / "20bn-something-something-v2"
    assert {path.name for path in videos.iterdir()} == {f"{i}.webm" for i in ids}
    assert len(set(ids)) == 22


def test_placeholder_and_template_describe_the_video(demo):
    entry = read_json(demo / "labels/train.json")[5]
    classes = {motion_class.template: motion_class for motion_class in motion_classes(TASK)}
    rng = np.random.default_rng((3, int(entry["id"])))
    frames, look = labelled_clip(TASK, classes[entry["template"]], rng)
    assert entry["placeholders"] == [f"a {look.texture} {look.shape}"]
    video = demo / f"20bn-something-something-v2/{entry['id']}.webm"
    assert video.read_bytes() == encode_webm(frames, TASK.fps)


@pytest.mark.parametrize(
    ("folder", "num_frames"), [("20bn-something-something-v2", 24), ("unlabelled", 96)]
)
def test_files_are_vp8_with_regular_frames(demo, folder, num_frames):
    for path in (demo / folder).iterdir():
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert container.format.name == "matroska,webm"
            assert stream.codec_context.name in ("vp8", "libvpx")
            assert stream.average_rate == 8
            assert (stream.height, stream.width) == (72, 96)
            times = [frame.pts * stream.time_base for frame in container.decode(video=0)]
        assert times == [Fraction(i, 8) for i in range(num_frames)]


def test_compression_keeps_every_frame_alike():
    # Without fading: a frame without its sprite is smooth, and so easier to compress.
    task = replace(TASK, motions=("horizontal", "vertical", "depth", "rotation"))
    frames = unlabelled_clip(task, np.random.default_rng(0))
    decoded = decode(io.BytesIO(encode_webm(frames, 8))).astype(float)
    error = ((decoded - frames) ** 2).mean(axis=(1, 2, 3))
    decibels = 10 * np.log10(255**2 / error)
    assert decibels.min() > 25
    assert np.ptp(decibels) < 7


@pytest.mark.parametrize("motion", MOTION_PAIRS)
def test_backward_class_is_the_forward_class_reversed(motion):
    forward_name, backward_name = MOTION_PAIRS[motion]
    forward, _ = labelled_clip(
        TASK, MotionClass(forward_name, motion, backward=False), np.random.default_rng(7)
    )
    backward, _ = labelled_clip(
        TASK, MotionClass(backward_name, motion, backward=True), np.random.default_rng(7)
    )
    assert MotionClass(backward_name, motion, True) in motion_classes(TASK)
    np.testing.assert_array_equal(backward, forward[::-1])
    assert (forward != backward).any()


@pytest.mark.parametrize("motion", MOTION_PAIRS)
def test_every_two_seconds_show_the_motion(motion):
    for seed in range(200):
        path = class_path(TASK, motion, np.random.default_rng(seed))
        quantity = getattr(path, MOVING_QUANTITY[motion])
        assert quantity.shape == (24,)
        assert (quantity[16:] > quantity[:-16]).all()


@pytest.mark.parametrize("motion", MOTION_PAIRS)
def test_single_moments_are_distributed_alike_in_a_pair(motion):
    """Two-sample Kolmogorov-Smirnov of what moves, at random times: forward against backward."""
    rng = np.random.default_rng(0)
    samples = np.zeros((2, 1000))
    for backward in (0, 1):
        for i in range(1000):
            quantity = getattr(class_path(TASK, motion, rng), MOVING_QUANTITY[motion])
            quantity = quantity[::-1] if backward else quantity
            if motion == "rotation":
                quantity = quantity % (2 * np.pi)
            samples[backward, i] = rng.choice(quantity)
    points = np.sort(samples.ravel())
    below = [np.searchsorted(np.sort(sample), points, side="right") / 1000 for sample in samples]
    assert np.abs(below[0] - below[1]).max() < 0.073  # 1 % level


def test_order_tells_the_pair_apart_and_a_middle_frame_does_not():
    task = replace(TASK, camera_probability=0.0, num_distractors=(0, 0), frame_size=(48, 64))
    pair = [c for c in motion_classes(task) if c.motion == "horizontal"]
    labels = np.arange(160) % 2
    clips = np.stack(
        [
            labelled_clip(task, pair[label], np.random.default_rng(i))[0]
            for i, label in enumerate(labels)
        ]
    ).astype(np.float32)
    foreground = np.abs(clips - np.median(clips, axis=1, keepdims=True)).sum(axis=(2, 4))
    centre = (foreground * np.arange(64)).sum(axis=2) / foreground.sum(axis=2)  # (160, 24)
    guess = centre[:, 18:].mean(axis=1) < centre[:, :6].mean(axis=1)
    backward = np.array([pair[label].backward for label in labels])
    assert (guess == backward).mean() > 0.95

    middle = clips[:, 12].reshape(160, 6, 8, 8, 8, 3).mean(axis=(2, 4)).reshape(160, -1)
    middle = (middle - middle.mean(axis=0)) / middle.std(axis=0)
    train, test = middle[:80], middle[80:]
    centroids = np.stack([train[labels[:80] == label].mean(axis=0) for label in (0, 1)])
    distance = ((test[:, None] - centroids) ** 2).sum(axis=2)
    assert 0.3 < (distance.argmin(axis=1) == labels[80:]).mean() < 0.7


def test_a_turn_shows_its_cap_upright_at_the_middle():
    """So the middle frame of a turn looks alike in both directions, and the first one does not."""
    for seed in range(200):
        angle = np.rad2deg(class_path(TASK, "rotation", np.random.default_rng(seed)).angle)
        assert abs(angle.mean()) <= 25
        assert 60 * 23 / 8 <= angle[-1] - angle[0] <= 90 * 23 / 8
        assert angle[0] < -60
        assert angle[-1] > 60


def test_unlabelled_video_moves_on_without_a_jump():
    for seed in range(100):
        path = wandering_path(TASK, np.random.default_rng(seed))
        assert path.x.shape == (96,)
        assert np.abs(np.diff(path.x)).max() < 6
        assert np.abs(np.diff(path.y)).max() < 6
        assert np.abs(np.diff(path.opacity)).max() < 0.13
        assert path.opacity.min() >= 0
        assert (path.radius > 5).all()
        assert (path.radius < 30).all()
    frames = unlabelled_clip(TASK, np.random.default_rng(1))
    assert frames.shape == (96, 72, 96, 3)
    assert (frames[:32] != frames[-32:]).any(axis=3).mean() > 0.02


def test_an_interrupted_run_continues(tmp_path):
    root = tmp_path / "data"
    make_demo_data(root, seed=3, num_workers=0, **COUNTS)
    complete = contents(root)
    removed = [
        root / "20bn-something-something-v2/4.webm",
        root / "unlabelled/2000002.webm",
        root / "labels/train.json",
    ]
    for path in removed:
        path.unlink()
    removed[0].with_name("4.webm.partial").write_bytes(b"half a video")
    kept = root / "20bn-something-something-v2/5.webm"
    before = kept.stat().st_mtime_ns
    result = make_demo_data(root, seed=3, num_workers=0, **COUNTS)
    assert (result.num_written, result.num_kept) == (2, 23)
    assert contents(root) == complete
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, r"seed 3 \(asked for: 5\)"),
        ({"num_train": 13}, r"num_train 12 \(asked for: 13\)"),
        ({"task": MotionTask(fps=16)}, r"fps 8 \(asked for: 16\)"),
    ],
)
def test_another_recipe_is_refused(demo, change, message):
    before = contents(demo)
    with pytest.raises(ValueError, match=message):
        make_demo_data(demo, **{"seed": 3, "num_workers": 0, **COUNTS, **change})
    assert contents(demo) == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "labels").mkdir()
    with pytest.raises(ValueError, match=r"not empty and has no recipe\.json"):
        make_demo_data(tmp_path, num_workers=0)
    (tmp_path / "recipe.json").write_text("[1")
    with pytest.raises(ValueError, match=r"recipe\.json is not a recipe"):
        make_demo_data(tmp_path, num_workers=0)


@pytest.mark.parametrize(
    "options",
    [{"num_train": -1}, {"seed": -1}, {"num_workers": -1}, {"num_unlabelled": 1_000_001}],
)
def test_numbers_out_of_range_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make_demo_data(tmp_path / "data", **options)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"motions": ("sideways",)},
        {"motions": ()},
        {"frame_size": (72, 95)},
        {"speed": (0.3, 0.2)},
        {"growth": (0.9, 1.2)},
        {"fade_seconds": (0.0, 1.0)},
    ],
)
def test_impossible_tasks_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MotionTask(**options)


def test_the_number_of_pairs_sets_the_number_of_classes():
    classes = motion_classes(MotionTask(motions=("vertical", "rotation")))
    assert [motion_class.template for motion_class in classes] == [
        "Moving [something] down",
        "Moving [something] up",
        "Turning [something] clockwise",
        "Turning [something] counterclockwise",
    ]


def test_command_line(tmp_path):
    command = [sys.executable, str(REPOSITORY / "tools/make_demo_data.py")]
    command += ["--num-train=2", "--num-validation=1", "--num-unlabelled=1", "--workers=0"]
    command += [f"--output={tmp_path / 'data'}"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "wrote 4 videos, kept 0" in done.stdout
    refused = subprocess.run(
        [*command, "--seed=9"], env=environment, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "seed 0 (asked for: 9)" in refused.stderr
    assert "Traceback" not in refused.stderr
