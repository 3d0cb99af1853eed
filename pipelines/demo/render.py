"""Scenes as video: analytic shapes, anti-aliased, at any size. Lengths are fractions of the short side.

The geometry below (`signed_distance`, `AREA`, `CENTROID`) is also what
:mod:`accel.measure.prompt_accuracy` compares objects with.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from accel.pipelines.demo.scenes import BACKGROUNDS, COLORS, TEXTURE_CONTRAST, Scene

#: Area of each shape at size 1.
AREA = {
    "circle": math.pi,
    "square": 1.8**2,
    "triangle": 0.5 * (1.75 * 1.05) ** 2,
    "ring": math.pi * 4 * 0.8 * 0.27,
}
#: How far below the shape's origin its centroid lies at size 1 (y grows downwards).
CENTROID = {"circle": 0.0, "square": 0.0, "triangle": 1.05 / 6, "ring": 0.0}


def signed_distance(shape: str, dx: Tensor, dy: Tensor, size: Tensor) -> Tensor:
    """Distance from the outline of a shape of that size around the origin: negative inside; broadcasts.

    A circle has radius `size`, a square half-side 0.9 `size`; a triangle points up and is as wide as it is
    high, 1.75 x 1.05 `size`; a ring runs from 0.53 to 1.07 `size`.
    """
    if shape == "circle":
        return torch.hypot(dx, dy) - size
    if shape == "square":
        return torch.maximum(dx.abs(), dy.abs()) - 0.9 * size
    if shape == "ring":
        return (torch.hypot(dx, dy) - 0.8 * size).abs() - 0.27 * size
    if shape == "triangle":
        k = 1.05 * size
        flank = (2 * dx.abs() - (dy + k)) / math.sqrt(5)
        return torch.maximum(flank, dy - 0.75 * k)
    raise ValueError(f"no such shape: {shape!r}")


class _Draw:
    """Uniform random numbers from one generator, on its device."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def tensor(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.generator.device)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.tensor(1).item()


def _trajectory(motion: str, time: Tensor, width: float, height: float, draw: _Draw) -> tuple[Tensor, ...]:
    """Centre x, centre y and size over time, each (T,): an even motion that stays inside the frame."""
    still = torch.ones_like(time)
    if motion in ("growing", "shrinking"):
        small, large = draw.between(0.07, 0.10), draw.between(0.24, 0.30)
        size = small + (large - small) * (time if motion == "growing" else time.flip(0))
        return width * draw.between(0.3, 0.7) * still, height * draw.between(0.3, 0.7) * still, size

    radius, travel = draw.between(0.13, 0.20), draw.between(0.42, 0.58)
    sideways = motion in ("left", "right")
    length, breadth = (width, height) if sideways else (height, width)
    margin = 0.9 * radius
    along = draw.between(margin, length - margin - travel) + travel * time
    if motion in ("left", "up"):
        along = length - along
    across = breadth * draw.between(0.3, 0.7) * still
    x, y = (along, across) if sideways else (across, along)
    return x, y, radius * still


def _backdrop(scene: Scene, x: Tensor, y: Tensor, short_side: int, draw: _Draw) -> Tensor:
    """The background (3, H, W) in [0, 1], with the small change of tone that every clip gets."""
    device = x.device
    tone = torch.tensor(BACKGROUNDS[scene.background], device=device) + (draw.tensor(3) - 0.5) * 0.04
    period, phase = draw.between(0.17, 0.25), draw.tensor(2)
    if scene.texture == "plain":
        second = torch.zeros_like(x)
    elif scene.texture == "striped":
        along = (x + y if phase[1] < 0.5 else x - y) / math.sqrt(2)
        wave = torch.sin(2 * math.pi * (along / period + phase[0]))
        second = (wave * short_side * period / 4).clamp(-0.5, 0.5) + 0.5
    else:
        wave = torch.sin(math.pi * (x / period + phase[0])) * torch.sin(math.pi * (y / period + phase[1]))
        second = (wave * short_side * period / 3).clamp(-0.5, 0.5) + 0.5
    return tone[:, None, None] + TEXTURE_CONTRAST[scene.background] * second


def _window(
    size: tuple[int, int, int], centre_x: Tensor, centre_y: Tensor, height: int, width: int, draw: _Draw
) -> list[slice]:
    """Frames, rows and columns of a window of that (T, H, W) that shows the object, or a part of it, mid-way."""
    frames, rows, columns = size
    first = int(draw.between(0, len(centre_x) - frames + 1))
    middle, short_side = first + frames // 2, min(height, width)
    slices = [slice(first, first + frames)]
    for centre, length, whole in ((centre_y, rows, height), (centre_x, columns, width)):
        start = centre[middle].item() * short_side - length / 2 + draw.between(-0.5, 0.5) * length
        start = min(max(round(start), 0), whole - length)
        slices.append(slice(start, start + length))
    return slices


def _render_one(
    scene: Scene, num_frames: int, height: int, width: int, draw: _Draw, window: tuple[int, int, int] | None
) -> Tensor:
    device = draw.generator.device
    short_side = min(height, width)
    y, x = torch.meshgrid(
        (torch.arange(height, device=device) + 0.5) / short_side,
        (torch.arange(width, device=device) + 0.5) / short_side,
        indexing="ij",
    )
    time = torch.linspace(0, 1, num_frames, device=device)
    path = _trajectory(scene.motion, time, width / short_side, height / short_side, draw)
    if window is not None:
        frames, rows, columns = _window(window, path[0], path[1], height, width, draw)
        x, y = x[rows, columns], y[rows, columns]
        path = tuple(value[frames] for value in path)
    centre_x, centre_y, size = (value[:, None, None] for value in path)
    distance = signed_distance(scene.shape, x - centre_x, y - centre_y, size)
    cover = (0.5 - distance * short_side).clamp(0, 1)  # (T, H, W): the share of each pixel that the object fills
    color = (torch.tensor(COLORS[scene.color], device=device) + (draw.tensor(3) - 0.5) * 0.06).clamp(0, 1)
    backdrop = _backdrop(scene, x, y, short_side, draw)
    return backdrop[:, None] * (1 - cover) + color[:, None, None, None] * cover


def render(
    scenes: Sequence[Scene],
    num_frames: int,
    height: int,
    width: int,
    generator: torch.Generator | None = None,
    window: tuple[int, int, int] | None = None,
) -> Tensor:
    """Draws each scene, with random size, place, speed and tone.

    Args:
        generator: where the random numbers come from and, by its device, where the video is made; a CPU
            generator seeded with 0 when None.
        window: (frames, rows, columns) to draw of each video instead of all of it, somewhere around the object.

    Returns:
        Video (B, 3, T, H, W), or (B, 3, *window), float32 in [-1, 1].

    Raises:
        ValueError: no scenes, a size below one frame or 8 pixels, or a window that is larger than the video.
    """
    if not scenes or num_frames < 1 or min(height, width) < 8:
        raise ValueError(
            f"cannot render {len(scenes)} scenes of {num_frames} frames at {width}x{height}: "
            "it takes a scene, a frame and 8 pixels"
        )
    if window is not None and any(
        part > whole for part, whole in zip(window, (num_frames, height, width), strict=True)
    ):
        raise ValueError(f"a window of {window} does not fit into {num_frames} frames at {width}x{height}")
    draw = _Draw(generator if generator is not None else torch.Generator().manual_seed(0))
    videos = [_render_one(scene, num_frames, height, width, draw, window) for scene in scenes]
    return (2 * torch.stack(videos) - 1).clamp(-1, 1)
