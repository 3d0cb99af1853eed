"""Does a clip show what its prompt asks for? An analytic detector for the scenes of the built-in model.

No learned parts: the object is found by its colour, its shape by overlap with the true outlines, its motion
by a straight line through its path. It is strict on purpose, so that a broken clip cannot score: without one
coherent object of one colour with clean edges in most frames, nothing is named, not even the background.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accel.measure.segmentation import Segmentation, segment
from accel.pipelines.demo.render import AREA, CENTROID, signed_distance
from accel.pipelines.demo.scenes import BACKGROUNDS, SHAPES, TEXTURE_CONTRAST, parse

SCORED = ("color", "shape", "motion", "background")
STATIC = "static"

# The gates, chosen by us on rendered scenes, on samples of the built-in model and on broken clips. Lengths
# are fractions of the frame's short side. Rendered scenes of 64 pixels have a purity of 0.84 and edges of
# 0.020 at worst; after the built-in model's autoencoder, at 128 pixels, 120 of 120 still pass the gates.
LEAST_PURITY = 0.75
LEAST_WHOLE = 0.85
AREA_RANGE = (0.004, 0.40)
MOST_EDGE = 0.05
LEAST_FRAMES = 0.7
# The same unsteadiness of the outline costs a long outline more overlap than a compact one.
LEAST_FIT = {"circle": 0.8, "square": 0.8, "triangle": 0.6, "ring": 0.6}
LEAST_VOTES = 0.5
LEAST_BACKDROP = 0.75
BACKDROP_TOLERANCE = 0.16
# The least travel and growth of a rendered scene, and the share of it from which an object counts as moving.
FULL_TRAVEL, FULL_GROWTH = 0.42, 0.80
LEAST_MOTION = 0.35
LEAST_EVENNESS = 0.85
# The runner-up's share of the strongest motion, above which a clip (on a diagonal, say) has no one motion.
MOST_SECOND_MOTION = 0.8
_VOTERS = 16
_BACKDROP_SAMPLE = 20_000


@dataclass(frozen=True)
class Detection:
    """What a clip shows, and the figures that say so.

    Attributes:
        color, shape, background: the scene's words, or None where the clip shows none of them clearly.
        motion: a word of the scenes, "static" for an object that stays as it is, None where there is no
            object, no even motion or more than one.
        frames: the share of frames that show the object in one piece, of a possible size, with clean edges.
        purity: the share of coloured pixels that have the object's colour.
        components: the mean number of pieces in a frame.
        area: the object's median area, in units of the short side squared.
        edge: the median width of its outline's soft part, in units of the short side.
        fit: the mean overlap (intersection over union) with the shape that most frames resemble.
        displacement: how far it moves to the right and down from the first frame to the last, along the
            straight line that fits best, in units of the short side.
        growth: how much its diameter changes in the same way, as a fraction of its mean.
        evenness: the share of the strongest motion's variance that its line explains.
        backdrop: the share of background pixels that have the tones of the nearest background.
    """

    color: str | None = None
    shape: str | None = None
    motion: str | None = None
    background: str | None = None
    frames: float = 0.0
    purity: float = 0.0
    components: float = 0.0
    area: float = 0.0
    edge: float = 0.0
    fit: float = 0.0
    displacement: tuple[float, float] = (0.0, 0.0)
    growth: float = 0.0
    evenness: float = 0.0
    backdrop: float = 0.0


def _line(values: Tensor, time: Tensor) -> tuple[float, float]:
    """The change over one unit of time along the best straight line, and the share of variance explained."""
    time, values = time - time.mean(), values - values.mean()
    slope = (time @ values) / (time @ time)
    variance = values @ values
    return slope.item(), (slope.square() * (time @ time) / variance).item() if variance > 0 else 0.0


def _centers(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The area in pixels of each (T, H, W) mask and the x and y of its centre, three float (T,)."""
    rows, columns = mask.sum(2).float(), mask.sum(1).float()
    area = rows.sum(1)
    x = columns @ (torch.arange(mask.shape[2], device=mask.device) + 0.5) / area
    y = rows @ (torch.arange(mask.shape[1], device=mask.device) + 0.5) / area
    return area, x, y


def _motion(mask: Tensor, time: Tensor) -> dict[str, Any]:
    """How the object of (T, H, W) masks moves; `time` (T,) runs from 0 to 1 over the clip."""
    short_side = min(mask.shape[1:])
    area, x, y = _centers(mask)
    diameter = area.sqrt()
    (right, even_x), (down, even_y) = _line(x / short_side, time), _line(y / short_side, time)
    growth, even_size = _line(diameter / diameter.mean(), time)
    kinds = [
        (abs(right) / FULL_TRAVEL, even_x, "right" if right > 0 else "left"),
        (abs(down) / FULL_TRAVEL, even_y, "down" if down > 0 else "up"),
        (abs(growth) / FULL_GROWTH, even_size, "growing" if growth > 0 else "shrinking"),
    ]
    (second, *_), (strength, evenness, name) = sorted(kinds)[1:]
    word: str | None = name
    if strength < LEAST_MOTION:
        word = STATIC
    elif evenness < LEAST_EVENNESS or second > MOST_SECOND_MOTION * strength:
        word = None
    return {"motion": word, "displacement": (right, down), "growth": growth, "evenness": evenness}


def _overlap(mask: Tensor, shape: str) -> Tensor:
    """(T,) intersection over union of (T, H, W) masks with the shape that has their areas and centres."""
    area, x, y = (value[:, None, None] for value in _centers(mask))
    size = (area / AREA[shape]).sqrt()
    columns = torch.arange(mask.shape[2], device=mask.device) + 0.5
    rows = (torch.arange(mask.shape[1], device=mask.device) + 0.5)[:, None]
    ideal = signed_distance(shape, columns - x, rows - (y - CENTROID[shape] * size), size) < 0
    return (ideal & mask).sum((1, 2)) / (ideal | mask).sum((1, 2))


def _shape(mask: Tensor) -> dict[str, Any]:
    """The shape of most of the frames in which the object is not cut off by the frame's border."""
    cut = mask[:, [0, -1]].any(2).any(1) | mask[:, :, [0, -1]].any(2).any(1)
    inside = mask[~cut]
    if len(inside) == 0:
        return {}
    voters = inside[torch.linspace(0, len(inside) - 1, min(len(inside), _VOTERS)).round().long()]
    overlap = torch.stack([_overlap(voters, shape) for shape in SHAPES])
    best = overlap.argmax(0) == torch.arange(len(SHAPES), device=mask.device)[:, None]
    clear = overlap >= overlap.new_tensor([LEAST_FIT[shape] for shape in SHAPES])[:, None]
    winner = int(best.sum(1).argmax())
    votes = (best & clear)[winner].float().mean()
    return {"shape": SHAPES[winner] if votes >= LEAST_VOTES else None, "fit": overlap[winner].mean().item()}


def _background(pixels: Tensor) -> dict[str, Any]:
    """The background whose two tones, or what lies between them, the pixels (N, 3) are nearest to."""
    if len(pixels) == 0:
        return {}
    pixels = pixels[:: max(1, len(pixels) // _BACKDROP_SAMPLE)]
    distances = []
    for name, tone in BACKGROUNDS.items():
        contrast = TEXTURE_CONTRAST[name]
        offset = pixels - pixels.new_tensor(tone)
        between = (offset.mean(1, keepdim=True) / contrast).clamp(0, 1) * contrast
        distances.append((offset - between).norm(dim=1))
    nearest = min(range(len(distances)), key=lambda index: distances[index].mean().item())
    share = (distances[nearest] < BACKDROP_TOLERANCE).float().mean().item()
    return {"background": list(BACKGROUNDS)[nearest] if share >= LEAST_BACKDROP else None, "backdrop": share}


def _as_video(video: Any) -> Tensor:
    tensor = torch.as_tensor(video)
    if tensor.ndim != 4 or tensor.shape[-1] != 3 or 0 in tensor.shape:
        raise ValueError(f"expected a video (frames, height, width, 3), got shape {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ValueError(f"expected a video of floats in [0, 1], got {tensor.dtype}; divide by 255 first")
    if not torch.isfinite(tensor).all():
        raise ValueError("the video has values that are not finite")
    return tensor.detach().float().clamp(0, 1)


def _good_frames(found: Segmentation) -> Tensor:
    """(T,) bool: the frames that show the object in one piece, in a possible size and with clean edges."""
    low, high = AREA_RANGE
    in_size = (found.area >= low) & (found.area <= high)
    return (found.whole >= LEAST_WHOLE) & in_size & (found.edge <= MOST_EDGE)


def detect(video: Any) -> Detection:
    """Says what a clip shows.

    Args:
        video: (T, H, W, 3) floats in [0, 1], a tensor or an array, as diffusers gives with
            `output_type="np"`; values outside are clamped.

    Raises:
        ValueError: another shape, integers, or values that are not finite.
    """
    video = _as_video(video)
    found = segment(video)
    if found is None:
        return Detection()
    good = _good_frames(found)
    figures: dict[str, Any] = {
        "frames": good.float().mean().item(),
        "purity": found.purity,
        "components": found.components.float().mean().item(),
        "area": found.area.median().item(),
        "edge": found.edge.median().item(),
    }
    if found.purity < LEAST_PURITY or figures["frames"] < LEAST_FRAMES:
        return Detection(**figures)
    mask = found.mask[good]
    time = torch.linspace(0, 1, len(good), device=good.device)[good]
    moving = _motion(mask, time) if len(time) > 1 else {"motion": STATIC}
    return Detection(color=found.color, **figures, **moving, **_shape(mask), **_background(video[found.backdrop]))


def score(video: Any, prompt: str) -> dict[str, bool]:
    """Whether a clip shows each of the attributes that its prompt names (texture is not judged).

    Args:
        video: as :func:`detect` takes it.
        prompt: read with :func:`accel.pipelines.demo.scenes.parse`.

    Returns:
        The named ones of "color", "shape", "motion" and "background"; empty where the prompt names none.
    """
    wanted = parse(prompt)
    detection = detect(video)
    return {name: getattr(detection, name) == wanted[name] for name in SCORED if wanted[name] is not None}


def prompt_accuracy(videos: Sequence[Any], prompts: Sequence[str]) -> dict[str, float]:
    """The share of clips that show what their prompts name.

    Args:
        videos: clips as :func:`detect` takes them.
        prompts: as many.

    Returns:
        For each attribute that any prompt names the share over the clips whose prompts name it, and "all",
        the share of clips that show everything they were asked for.

    Raises:
        ValueError: not as many prompts as clips, none at all, or no prompt that names an attribute.
    """
    if len(videos) != len(prompts) or len(prompts) == 0:
        raise ValueError(f"expected one prompt for each video, got {len(videos)} videos and {len(prompts)} prompts")
    return share_right([score(video, prompt) for video, prompt in zip(videos, prompts, strict=True)])


def share_right(scores: Sequence[dict[str, bool]]) -> dict[str, float]:
    """What :func:`prompt_accuracy` returns, from the :func:`score` of each clip.

    Raises:
        ValueError: no prompt named an attribute.
    """
    verdicts: dict[str, list[bool]] = {name: [] for name in (*SCORED, "all")}
    for one in scores:
        for name, right in one.items():
            verdicts[name].append(right)
        if one:
            verdicts["all"].append(all(one.values()))
    if not verdicts["all"]:
        raise ValueError("no prompt names a colour, shape, motion or background that the detector knows")
    return {name: sum(rights) / len(rights) for name, rights in verdicts.items() if rights}
