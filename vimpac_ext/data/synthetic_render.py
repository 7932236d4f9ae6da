"""How the demo videos look: random shapes, textures, colours and backgrounds, drawn with numpy.

Only numpy is used, so that worker processes share no thread pool, and all frames of a clip are
drawn at once.
"""

import colorsys
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vimpac_ext.data.synthetic_motion import MotionTask, SpritePath, swaying_path

Floats = NDArray[np.float32]

SHAPES = ("disc", "square", "triangle", "star", "ring", "flower")
TEXTURES = ("striped", "checked", "spotted", "plain")
TILE_SIZE = 96  # pixels; finer than any sprite on the screen, so that nearest sampling is smooth
BACKGROUND_SCALE = 2  # texels per pixel, likewise for a drift by fractions of a pixel


class Look(NamedTuple):
    """What a sprite is; its colours are drawn when it is rendered."""

    shape: str
    texture: str


def draw_look(rng: np.random.Generator) -> Look:
    """Chooses a sprite's shape and texture."""
    return Look(str(rng.choice(SHAPES)), str(rng.choice(TEXTURES)))


def render(
    task: MotionTask, look: Look, path: SpritePath, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Draws a sprite that follows a path over a random background with random distractors.

    Args:
        task: frame size, distractors and background.
        look: the sprite's shape and texture.
        path: the sprite's path over N frames.
        rng: source of everything else.

    Returns:
        uint8 (N, H, W, 3) RGB frames.
    """
    num_frames = len(path.x)
    # Dark muted ground, vivid sprites: as hard to tell apart in any one frame, but a coarse token
    # shows what belongs to a sprite.
    backdrop = rng.uniform(0.1, 0.4) + rng.uniform(-task.background_tint, task.background_tint, 3)
    frames = _background(task, num_frames, backdrop, rng)
    colours = _sprite_colours(rng)
    fewest, most = task.num_distractors
    for _ in range(rng.integers(fewest, most + 1)):
        tile = _sprite_tile(draw_look(rng), _sprite_colours(rng), rng)
        _draw(frames, tile, swaying_path(task, num_frames, rng))
    _draw(frames, _sprite_tile(look, colours, rng), path)
    return np.rint(frames * 255).astype(np.uint8)


def _background(
    task: MotionTask, num_frames: int, backdrop: NDArray[np.float64], rng: np.random.Generator
) -> Floats:
    """A random periodic texture, still or drifting; float32 (N, H, W, 3) in [0, 1]."""
    height, width = task.frame_size
    size = (height * BACKGROUND_SCALE, width * BACKGROUND_SCALE)
    grain = rng.uniform(3, 9) * BACKGROUND_SCALE
    edges = rng.uniform(0.5, 3)  # from soft clouds to patches with borders
    noise = np.tanh(edges * _noise(size, grain, 3, rng)) / np.tanh(edges)
    texture = backdrop + rng.uniform(*task.background_contrast) * noise
    texture = np.clip(texture, 0, 1).astype(np.float32)

    speed = rng.uniform(*task.camera_speed) if rng.random() < task.camera_probability else 0.0
    direction = rng.uniform(0, 2 * np.pi)
    drift = speed * height * np.arange(num_frames) / task.fps
    rows = np.arange(height) + drift[:, None] * np.sin(direction)
    columns = np.arange(width) + drift[:, None] * np.cos(direction)
    rows = np.rint(rows * BACKGROUND_SCALE).astype(np.int64) % size[0]
    columns = np.rint(columns * BACKGROUND_SCALE).astype(np.int64) % size[1]
    frames: Floats = texture[rows[:, :, None], columns[:, None, :]]
    return frames


def _noise(size: tuple[int, int], grain: float, channels: int, rng: np.random.Generator) -> Floats:
    """Smooth periodic noise (H, W, channels) of mean 0 and standard deviation 1.

    ``grain`` is the standard deviation in pixels of the Gaussian that smooths white noise.
    """
    spectrum = np.fft.rfft2(rng.standard_normal((channels, *size)))
    rows = np.fft.fftfreq(size[0])[:, None]
    columns = np.fft.rfftfreq(size[1])
    spectrum *= np.exp(-2 * (np.pi * grain) ** 2 * (rows**2 + columns**2))
    spectrum[:, 0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=size)
    noise /= noise.std(axis=(1, 2), keepdims=True)
    return noise.transpose(1, 2, 0).astype(np.float32)


def _sprite_colours(rng: np.random.Generator) -> NDArray[np.float64]:
    """Two vivid colours (2, 3): a random hue, and a darker shade of it."""
    hue, saturation = rng.uniform(), rng.uniform(0.8, 1.0)
    values = rng.uniform(0.8, 1.0), rng.uniform(0.45, 0.65)
    return np.array([colorsys.hsv_to_rgb(hue, saturation, value) for value in values])


def _sprite_tile(look: Look, colours: NDArray[np.float64], rng: np.random.Generator) -> Floats:
    """RGB and opacity of a sprite, float32 (TILE_SIZE, TILE_SIZE, 4) over [-1, 1] x [-1, 1]."""
    axis = (np.arange(TILE_SIZE) + 0.5) / TILE_SIZE * 2 - 1
    v, u = np.meshgrid(axis, axis, indexing="ij")
    pattern = _pattern(look.texture, u, v, rng)[:, :, None]
    rgb = colours[0] * (1 - pattern) + colours[1] * pattern
    # A white cap on top: no sprite looks the same after a part of a turn.
    cap = _step(-v - 0.2)[:, :, None]
    rgb = rgb * (1 - cap) + cap
    return np.dstack([rgb, _silhouette(look.shape, u, v)]).astype(np.float32)


def _pattern(
    texture: str, u: NDArray[np.float64], v: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Share of the second colour at each point."""
    if texture == "plain":
        return np.zeros_like(u)
    if texture == "spotted":
        return _step(0.2 * _noise((TILE_SIZE, TILE_SIZE), TILE_SIZE / 14, 1, rng)[:, :, 0])
    turn = rng.uniform(0, 2 * np.pi)
    along = u * np.cos(turn) + v * np.sin(turn)
    across = v * np.cos(turn) - u * np.sin(turn)
    frequency = np.pi * rng.uniform(1.2, 2.2)
    wave = np.sin(frequency * along + rng.uniform(0, 2 * np.pi))
    if texture == "checked":
        wave = wave * np.sin(frequency * across + rng.uniform(0, 2 * np.pi))
    return _step(0.2 * wave)


def _silhouette(shape: str, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """Opacity of a shape that fills the unit circle."""
    distance = np.hypot(u, v)
    azimuth = np.arctan2(v, u)
    if shape in ("square", "triangle"):
        sector = 2 * np.pi / (4 if shape == "square" else 3)
        border = np.cos(sector / 2) / np.cos(azimuth % sector - sector / 2)
    elif shape == "star":
        sector = 2 * np.pi / 5
        border = 0.4 + 0.6 * np.abs(azimuth % sector / sector * 2 - 1)
    elif shape == "flower":
        border = 0.75 + 0.25 * np.cos(6 * azimuth)
    else:
        border = np.ones_like(u)
    opacity = _step(0.96 * border - distance)
    return opacity * _step(distance - 0.4) if shape == "ring" else opacity


def _step(value: NDArray[np.floating]) -> NDArray[np.float64]:
    """0 below and 1 above zero, with a ramp as wide as about a pixel of a small sprite."""
    ramp: NDArray[np.float64] = np.clip(value / 0.08 + 0.5, 0, 1).astype(np.float64)
    return ramp


def _draw(frames: Floats, tile: Floats, path: SpritePath) -> None:
    """Blends a sprite into float32 frames (N, H, W, 3), in place.

    Looks up the sprite for each pixel of a window around its centre, in all frames at once.
    """
    _, height, width, _ = frames.shape
    reach = int(np.ceil(path.radius.max())) + 1
    window = np.arange(-reach, reach + 1)
    columns = np.rint(path.x).astype(np.int64)[:, None] + window
    rows = np.rint(path.y).astype(np.int64)[:, None] + window
    dx = ((columns - path.x[:, None]) / path.radius[:, None])[:, None, :]
    dy = ((rows - path.y[:, None]) / path.radius[:, None])[:, :, None]
    cos, sin = np.cos(path.angle)[:, None, None], np.sin(path.angle)[:, None, None]
    u = cos * dx + sin * dy
    v = cos * dy - sin * dx
    visible = (np.abs(u) < 0.999) & (np.abs(v) < 0.999)
    visible &= ((columns >= 0) & (columns < width))[:, None, :]
    visible &= ((rows >= 0) & (rows < height))[:, :, None]
    frame, i, j = np.nonzero(visible)
    texels = (np.stack([v[frame, i, j], u[frame, i, j]]) + 1) * (TILE_SIZE / 2)
    texel_rows, texel_columns = texels.astype(np.int64)
    sprite = tile[texel_rows, texel_columns]
    where = frame, rows[frame, i], columns[frame, j]
    opacity = sprite[:, 3:] * path.opacity[frame, None].astype(np.float32)
    frames[where] += opacity * (sprite[:, :3] - frames[where])
