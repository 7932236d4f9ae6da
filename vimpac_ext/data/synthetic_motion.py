"""What moves in the demo videos: the classes and the paths of the sprites.

The classes come in pairs, and the second class of a pair is the first one played backwards. A path
is symmetric in distribution: what it shows at time t has the distribution of what it would show,
played backwards, at the mirrored time. Over a whole clip the single frames of both classes are
therefore distributed alike, and only the order of frames tells them apart.
"""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

MOTION_PAIRS: dict[str, tuple[str, str]] = {
    "horizontal": (
        "Moving [something] from left to right",
        "Moving [something] from right to left",
    ),
    "vertical": ("Moving [something] down", "Moving [something] up"),
    "depth": (
        "Moving [something] towards the camera",
        "Moving [something] away from the camera",
    ),
    "rotation": ("Turning [something] clockwise", "Turning [something] counterclockwise"),
    "visibility": ("Making [something] appear", "Making [something] vanish"),
}
"""Motion -> templates of the class that plays forward and of the one that plays backward."""

Range = tuple[float, float]


@dataclass(frozen=True)
class MotionTask:
    """Everything that makes the demo task easy or hard.

    Lengths are in frame heights: 1/32 is one pixel of a frame resized to 32 pixels. A model that
    reads 2 frames a second sees half of a rate per frame. Ranges are drawn from uniformly.

    Attributes:
        frame_size: height and width in pixels, both even.
        fps: frames per second of the files.
        clip_seconds: length of a labelled video.
        unlabelled_seconds: length of an unlabelled video.
        event_seconds: shortest and longest motion event of an unlabelled video.
        motions: names in `MOTION_PAIRS`; each gives two classes.
        speed: heights per second; 0.25 to 0.35 is 4 to 5.6 pixels of 32 per frame at 2 fps.
        slant: largest part of the speed that goes across the class's direction.
        turn_rate: degrees per second.
        turn_middle: degrees; at the middle of a turn the cap is at most so far from upright.
        growth: factor per second by which an approaching sprite grows.
        fade_seconds: duration of an appearance.
        sprite_radius: of the sprite that carries the class.
        turning_radius: the same in a rotation, which small sprites hide from coarse tokens.
        depth_radius: the same at the middle of an approach, where it is the geometric mean.
        wobble: amplitude of a slow sway that every path has.
        num_distractors: fewest and most smaller sprites that sway about.
        distractor_radius: their radius.
        distractor_sway: amplitude of their sway.
        camera_probability: part of the videos whose background drifts, in a random direction.
        camera_speed: heights per second.
        background_contrast: standard deviation of the background's texture, of 1.
        background_tint: largest difference of a background's colour channel from grey.

    Raises:
        ValueError: for an unknown motion, an odd frame size or a range that is not one.
    """

    frame_size: tuple[int, int] = (72, 96)
    fps: int = 8
    clip_seconds: float = 3.0
    unlabelled_seconds: float = 12.0
    event_seconds: Range = (3.0, 4.0)
    motions: tuple[str, ...] = tuple(MOTION_PAIRS)
    speed: Range = (0.25, 0.35)
    slant: float = 0.2
    turn_rate: Range = (60.0, 90.0)
    turn_middle: float = 25.0
    growth: Range = (1.6, 2.0)
    fade_seconds: Range = (1.5, 2.2)
    sprite_radius: Range = (0.25, 0.32)
    turning_radius: Range = (0.30, 0.40)
    depth_radius: Range = (0.20, 0.25)
    wobble: float = 0.015
    num_distractors: tuple[int, int] = (0, 1)
    distractor_radius: Range = (0.05, 0.09)
    distractor_sway: Range = (0.0, 0.1)
    camera_probability: float = 0.25
    camera_speed: Range = (0.02, 0.06)
    background_contrast: Range = (0.0, 0.02)
    background_tint: float = 0.05

    def __post_init__(self) -> None:
        unknown = [motion for motion in self.motions if motion not in MOTION_PAIRS]
        if unknown or not self.motions:
            raise ValueError(f"motions {self.motions}: choose from {tuple(MOTION_PAIRS)}")
        if any(side < 2 or side % 2 for side in self.frame_size):
            raise ValueError(f"frame_size {self.frame_size}: VP8 needs two even numbers")
        for name, value in asdict(self).items():
            if name in ("frame_size", "motions") or not isinstance(value, tuple):
                continue
            above = {"growth": 1, "fade_seconds": 0, "event_seconds": 0}.get(name, -1)
            if not (0 <= value[0] <= value[1] and value[0] > above):
                raise ValueError(
                    f"{name} {value}: expected (low, high), 0 <= low <= high, low > {above}"
                )

    @property
    def num_clip_frames(self) -> int:
        """Frames of a labelled video."""
        return round(self.clip_seconds * self.fps)

    @property
    def num_unlabelled_frames(self) -> int:
        """Frames of an unlabelled video."""
        return round(self.unlabelled_seconds * self.fps)


@dataclass(frozen=True)
class SpritePath:
    """Where one sprite is in each of N frames, float64 (N,) each.

    Attributes:
        x: centre, pixels from the left edge.
        y: centre, pixels from the upper edge.
        radius: pixels.
        angle: radians, clockwise on the screen.
        opacity: 0 (invisible) to 1.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    radius: NDArray[np.float64]
    angle: NDArray[np.float64]
    opacity: NDArray[np.float64]


# Columns of a state: position from the frame's centre in heights, log of the radius in heights,
# radians, opacity.
X, Y, LOG_RADIUS, ANGLE, OPACITY = range(5)

# Between these an unlabelled video's sprite moves to and fro; the angle has no limits. The
# horizontal limits are those of the vertical ones plus what a 4:3 frame is wider.
LOWEST = np.array([-0.45, -0.35, np.log(0.11), 0.0, 0.0])
HIGHEST = np.array([0.45, 0.35, np.log(0.36), 0.0, 1.0])


def class_path(task: MotionTask, motion: str, rng: np.random.Generator) -> SpritePath:
    """Path of a labelled video's sprite: one steady motion, half done at the middle of the clip.

    Args:
        task: sizes and rates.
        motion: name in `MOTION_PAIRS`; the path is that of its forward class.
        rng: source of all randomness.

    Returns:
        A path of ``task.num_clip_frames`` frames.
    """
    num_frames = task.num_clip_frames
    time = (np.arange(num_frames) - (num_frames - 1) / 2) / task.fps
    radius = {"depth": task.depth_radius, "rotation": task.turning_radius}
    middle = _start_state(radius.get(motion, task.sprite_radius), rng)
    if motion == "visibility":
        middle[OPACITY] = 0.5
    if motion == "rotation":
        middle[ANGLE] = np.deg2rad(rng.uniform(-task.turn_middle, task.turn_middle))
    state = middle + time[:, None] * _rates(task, motion, rng)
    return _to_path(task, state, rng)


def wandering_path(task: MotionTask, rng: np.random.Generator) -> SpritePath:
    """Path of an unlabelled video's sprite: events of different motions without a jump.

    Each event starts where the last one ended, moves away from the nearest limit and turns around
    at the opposite one. A visibility event fades out and in again.

    Returns:
        A path of ``task.num_unlabelled_frames`` frames.
    """
    middle = (LOWEST + HIGHEST) / 2
    radius = task.sprite_radius if rng.random() < 0.5 else task.turning_radius
    state = _start_state(radius, rng)
    states = []
    motions: list[str] = []
    for num_frames in _event_lengths(task, rng):
        others = [motion for motion in task.motions if motion not in motions[-1:]]
        motions.append(str(rng.choice(others or task.motions)))
        rates = _rates(task, motions[-1], rng)
        if motions[-1] == "visibility":
            rates[OPACITY] = 2 * task.fps / num_frames
        direction = np.where(state > middle, -1.0, 1.0)
        direction[ANGLE] = rng.choice((-1.0, 1.0))
        moved = state + (np.arange(num_frames)[:, None] + 1) / task.fps * rates * direction
        states.append(_fold(moved))
        state = states[-1][-1]
    return _to_path(task, np.concatenate(states), rng)


def swaying_path(task: MotionTask, num_frames: int, rng: np.random.Generator) -> SpritePath:
    """Path of a distractor: it stays or sways about a place anywhere in the frame."""
    height, width = task.frame_size
    place = rng.uniform(-0.5, 0.5, size=2) * (width, height)
    sway = _sway(task, num_frames, rng.uniform(*task.distractor_sway), rng) * height
    ones = np.ones(num_frames)
    return SpritePath(
        x=width / 2 + place[0] + sway[:, 0],
        y=height / 2 + place[1] + sway[:, 1],
        radius=height * rng.uniform(*task.distractor_radius) * ones,
        angle=rng.uniform(0, 2 * np.pi) * ones,
        opacity=ones,
    )


def _start_state(radius: Range, rng: np.random.Generator) -> NDArray[np.float64]:
    """A sprite near the centre, with a radius from the range, (5,)."""
    return np.array(
        [
            rng.uniform(-0.12, 0.12),
            rng.uniform(-0.12, 0.12),
            np.log(rng.uniform(*radius)),
            rng.uniform(0, 2 * np.pi),
            1.0,
        ]
    )


def _rates(task: MotionTask, motion: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Change of the state per second in a motion's forward class, (5,)."""
    rates = np.zeros(5)
    if motion in ("horizontal", "vertical"):
        along, across = (X, Y) if motion == "horizontal" else (Y, X)
        rates[along] = rng.uniform(*task.speed)
        rates[across] = rates[along] * rng.uniform(-task.slant, task.slant)
    elif motion == "depth":
        rates[LOG_RADIUS] = np.log(rng.uniform(*task.growth))
    elif motion == "rotation":
        rates[ANGLE] = np.deg2rad(rng.uniform(*task.turn_rate))
    else:
        assert motion == "visibility", motion
        rates[OPACITY] = 1 / rng.uniform(*task.fade_seconds)
    return rates


def _event_lengths(task: MotionTask, rng: np.random.Generator) -> list[int]:
    """Splits an unlabelled video into events of equal length, in frames."""
    shortest, longest = task.event_seconds
    fewest = max(1, int(np.ceil(task.unlabelled_seconds / longest)))
    most = max(fewest, int(task.unlabelled_seconds / shortest))
    num_events = int(rng.integers(fewest, most + 1))
    return [len(part) for part in np.array_split(np.arange(task.num_unlabelled_frames), num_events)]


def _fold(state: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reflects states (N, 5) at the limits, except the angle."""
    span = np.where(HIGHEST > LOWEST, HIGHEST - LOWEST, 1.0)
    folded: NDArray[np.float64] = LOWEST + span - np.abs((state - LOWEST) % (2 * span) - span)
    folded[:, ANGLE] = state[:, ANGLE]
    return folded


def _sway(
    task: MotionTask, num_frames: int, amplitude: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """A sine of random phase and a period of 2 to 5 s in each direction, (N, 2), in heights."""
    time = np.arange(num_frames)[:, None] / task.fps
    turns = time / rng.uniform(2, 5, size=2) + rng.uniform(0, 1, size=2)
    sway: NDArray[np.float64] = amplitude * np.sin(2 * np.pi * turns)
    return sway


def _to_path(task: MotionTask, state: NDArray[np.float64], rng: np.random.Generator) -> SpritePath:
    height, width = task.frame_size
    wobble = _sway(task, len(state), task.wobble, rng)
    return SpritePath(
        x=width / 2 + height * (state[:, X] + wobble[:, 0]),
        y=height / 2 + height * (state[:, Y] + wobble[:, 1]),
        radius=height * np.exp(state[:, LOG_RADIUS]),
        angle=state[:, ANGLE],
        opacity=np.clip(state[:, OPACITY], 0, 1),
    )
