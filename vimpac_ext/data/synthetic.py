"""Writes the demo data: a small labelled video data set and unlabelled pre-training videos.

The labelled part has the format of Something-Something V2 as it is distributed now: ``labels/``
with JSON files and ``20bn-something-something-v2/<id>.webm``. The unlabelled videos lie in
``unlabelled/``. Every file is a function of the seed and its id alone.
"""

import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vimpac_ext.data.synthetic_motion import (
    MOTION_PAIRS,
    MotionTask,
    class_path,
    wandering_path,
)
from vimpac_ext.data.synthetic_render import Look, draw_look, render

VIDEO_FOLDER = "20bn-something-something-v2"
LABEL_FOLDER = "labels"
UNLABELLED_FOLDER = "unlabelled"
RECIPE_FILE = "recipe.json"
PARTIAL_SUFFIX = ".partial"
RECIPE_VERSION = 3  # raise it when the same numbers give other videos

# First id of each part; ids are numbers, as in the original, and unique over all parts.
FIRST_TRAIN_ID, FIRST_VALIDATION_ID, FIRST_UNLABELLED_ID = 1, 1_000_001, 2_000_001
LARGEST_PART = 1_000_000

# Fast, and a constant quantizer, so that late frames look like early ones.
VP8_OPTIONS = {
    "deadline": "realtime",
    "cpu-used": "8",
    "qmin": "8",
    "qmax": "8",
    "b": "4M",
    "lag-in-frames": "0",
    "auto-alt-ref": "0",
}


class MotionClass(NamedTuple):
    """One class: a motion, played forward or backward, under its template."""

    template: str
    motion: str
    backward: bool


class DemoData(NamedTuple):
    """What `make_demo_data` did."""

    root: Path
    num_written: int
    num_kept: int


class _Job(NamedTuple):
    """One video to write; an unlabelled one has no class."""

    video_id: int
    path: Path
    motion_class: MotionClass | None


def motion_classes(task: MotionTask) -> list[MotionClass]:
    """The task's classes; the position is the label. Sorted by template, as in the original."""
    classes = [
        MotionClass(template, motion, backward)
        for motion in task.motions
        for template, backward in zip(MOTION_PAIRS[motion], (False, True), strict=True)
    ]
    return sorted(classes, key=lambda motion_class: _without_brackets(motion_class.template))


def labelled_clip(
    task: MotionTask, motion_class: MotionClass, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], Look]:
    """Draws a labelled video.

    The backward class is drawn like the forward class of its pair, with the frames reversed.

    Returns:
        uint8 (N, H, W, 3) RGB frames, and what the moving thing is.
    """
    look = draw_look(rng)
    frames = render(task, look, class_path(task, motion_class.motion, rng), rng)
    return (frames[::-1] if motion_class.backward else frames), look


def unlabelled_clip(task: MotionTask, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draws a longer video: one scene, several motions in turn; uint8 (N, H, W, 3) RGB."""
    return render(task, draw_look(rng), wandering_path(task, rng), rng)


def encode_webm(frames: NDArray[np.uint8], fps: int) -> bytes:
    """Encodes RGB frames (N, H, W, 3) as VP8 in WebM; the same frames give the same bytes."""
    buffer = io.BytesIO()
    with av.open(
        buffer, "w", format="webm", container_options={"fflags": "+bitexact"}
    ) as container:
        stream = container.add_stream("libvpx", rate=fps, options=dict(VP8_OPTIONS))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def make_demo_data(
    root: str | Path,
    *,
    seed: int = 0,
    num_train: int = 500,
    num_validation: int = 200,
    num_unlabelled: int = 500,
    task: MotionTask | None = None,
    num_workers: int = 2,
) -> DemoData:
    """Writes the demo data, or the part of it that is missing.

    The classes take turns, so any first part of a JSON file is nearly balanced. Videos are written
    under another name and renamed when complete, the JSON files last. The bytes do not depend on
    the number of workers.

    Args:
        root: folder to write, new or made by an earlier call with the same arguments.
        seed: not negative.
        num_train: labelled videos in ``labels/train.json``.
        num_validation: labelled videos in ``labels/validation.json``.
        num_unlabelled: videos in ``unlabelled/``.
        task: what the videos show; None takes the defaults of `MotionTask`.
        num_workers: processes; 0 writes in this one.

    Returns:
        How many videos were written and how many were there.

    Raises:
        ValueError: if a number is out of range, or the folder holds anything else.
    """
    task = task or MotionTask()
    root = Path(root)
    counts = {
        "num_train": num_train,
        "num_validation": num_validation,
        "num_unlabelled": num_unlabelled,
    }
    for name, value in {"seed": seed, "num_workers": num_workers, **counts}.items():
        if value < 0:
            raise ValueError(f"{name} is {value}; expected 0 or more")
        if name in counts and value > LARGEST_PART:
            raise ValueError(f"{name} is {value}; expected at most {LARGEST_PART}")
    recipe = {"version": RECIPE_VERSION, "seed": seed, **counts, **asdict(task)}
    _claim_folder(root, recipe)

    train = _labelled_jobs(root, task, FIRST_TRAIN_ID, num_train)
    validation = _labelled_jobs(root, task, FIRST_VALIDATION_ID, num_validation)
    unlabelled = [
        _Job(video_id, root / UNLABELLED_FOLDER / f"{video_id}.webm", None)
        for video_id in range(FIRST_UNLABELLED_ID, FIRST_UNLABELLED_ID + num_unlabelled)
    ]
    jobs = [*train, *validation, *unlabelled]
    missing = [job for job in jobs if not job.path.exists()]
    _run(partial(_write_video, task=task, seed=seed), missing, num_workers)
    _write_annotations(root / LABEL_FOLDER, task, seed, train, validation)
    return DemoData(root, num_written=len(missing), num_kept=len(jobs) - len(missing))


def _claim_folder(root: Path, recipe: dict[str, object]) -> None:
    """Makes the folders, or checks that they were made by the same recipe."""
    path = root / RECIPE_FILE
    text = json.dumps(recipe, indent=2) + "\n"
    if path.exists():
        _check_recipe(path, expected=json.loads(text))
    elif root.exists() and any(entry.suffix != PARTIAL_SUFFIX for entry in root.iterdir()):
        raise ValueError(f"{root} is not empty and has no {RECIPE_FILE}: choose a new folder")
    for folder in (VIDEO_FOLDER, LABEL_FOLDER, UNLABELLED_FOLDER):
        (root / folder).mkdir(parents=True, exist_ok=True)
    _write_atomic(path, text.encode())


def _check_recipe(path: Path, expected: dict[str, object]) -> None:
    try:
        found = dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a recipe of demo data: {error}") from error
    different = [
        f"{key} {found.get(key)} (asked for: {expected.get(key)})"
        for key in sorted({*found, *expected})
        if found.get(key) != expected.get(key)
    ]
    if different:
        raise ValueError(
            f"{path.parent} holds other demo data: {', '.join(different)}. "
            "Choose a new folder or delete that one"
        )


def _labelled_jobs(root: Path, task: MotionTask, first_id: int, count: int) -> list[_Job]:
    classes = motion_classes(task)
    return [
        _Job(first_id + i, root / VIDEO_FOLDER / f"{first_id + i}.webm", classes[i % len(classes)])
        for i in range(count)
    ]


def _run(write: Callable[[_Job], None], jobs: Sequence[_Job], num_workers: int) -> None:
    """Calls ``write`` on every job, with a progress bar on a terminal."""
    progress = partial(tqdm, total=len(jobs), desc="demo videos", unit="video", disable=None)
    if num_workers == 0 or len(jobs) <= 1:
        for job in progress(jobs):
            write(job)
        return
    # "spawn" is safe whatever threads the caller has.
    context = get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        for _ in progress(pool.map(write, jobs, chunksize=8)):
            pass


def _write_video(job: _Job, task: MotionTask, seed: int) -> None:
    rng = _generator(seed, job)
    if job.motion_class is None:
        frames = unlabelled_clip(task, rng)
    else:
        frames, _ = labelled_clip(task, job.motion_class, rng)
    _write_atomic(job.path, encode_webm(frames, task.fps))


def _generator(seed: int, job: _Job) -> np.random.Generator:
    return np.random.default_rng((seed, job.video_id))


def _write_annotations(
    folder: Path, task: MotionTask, seed: int, train: Sequence[_Job], validation: Sequence[_Job]
) -> None:
    names = [_without_brackets(motion_class.template) for motion_class in motion_classes(task)]
    contents = {
        "labels.json": {name: str(label) for label, name in enumerate(names)},
        "train.json": [_annotation(job, _generator(seed, job)) for job in train],
        "validation.json": [_annotation(job, _generator(seed, job)) for job in validation],
        "test.json": [],
    }
    for name, content in contents.items():
        _write_atomic(folder / name, (json.dumps(content, indent=1) + "\n").encode())


def _annotation(job: _Job, rng: np.random.Generator) -> dict[str, object]:
    """An entry of the official format; ``rng`` gives the look that the video was drawn with."""
    assert job.motion_class is not None
    template = job.motion_class.template
    thing = f"a {' '.join(reversed(draw_look(rng)))}"
    label = template.replace("[something]", thing)
    return {
        "id": str(job.video_id),
        "label": label[0].lower() + label[1:],
        "template": template,
        "placeholders": [thing],
    }


def _without_brackets(template: str) -> str:
    return template.replace("[", "").replace("]", "")


def _write_atomic(path: Path, content: bytes) -> None:
    """Writes a file that is either complete or not there."""
    partial_path = path.with_name(path.name + PARTIAL_SUFFIX)
    partial_path.write_bytes(content)
    partial_path.replace(path)
