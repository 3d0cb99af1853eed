"""Finding the one coloured object of a clip: which pixels are its, and how sure that is, frame by frame."""

from dataclasses import dataclass

import torch
from torch import Tensor

from accel.measure.components import pieces
from accel.pipelines.demo.scenes import COLORS

#: Highest minus lowest channel from which a pixel counts as coloured; the backgrounds stay under 0.30.
_COLORED = 0.38
#: The RGB distance to the nearest palette colour up to which a pixel has that colour.
_SAME_COLOR = 0.38
#: The background's hue is taken from every fourth pixel of every fourth row.
_SAMPLE = 4
#: The share of a frame's object from which a piece counts as a component rather than a speck.
_SPECK = 0.05


@dataclass(frozen=True)
class Segmentation:
    """The object of a clip of T frames; lengths are fractions of the frame's short side.

    Attributes:
        color: the palette's word for most of the coloured pixels.
        purity: the share of coloured pixels that have this colour, over the whole clip.
        mask: (T, H, W) bool, the object's largest piece in each frame.
        backdrop: (T, H, W) bool, the pixels that have nothing of the object.
        whole: (T,) the share of the object's pixels that its largest piece holds; 0 where there is no object.
        components: (T,) int64, pieces larger than a speck.
        area: (T,) of the largest piece, in units of the short side squared.
        edge: (T,) the mean width of the outline's soft middle half (from a quarter to three quarters object).
    """

    color: str
    purity: float
    mask: Tensor
    backdrop: Tensor
    whole: Tensor
    components: Tensor
    area: Tensor
    edge: Tensor


def _is_colored(video: Tensor) -> Tensor:
    return video.amax(-1) - video.amin(-1) > _COLORED


def _chroma(pixels: Tensor) -> Tensor:
    """The pixels (..., 3) without their brightness."""
    return pixels - pixels.mean(-1, keepdim=True)


def _outline_length(mask: Tensor) -> Tensor:
    """(T,) the length in pixels of the outline of (T, H, W) masks, exact on average over all directions."""
    sideways = (mask[:, :, 1:] != mask[:, :, :-1]).sum((1, 2))
    upright = (mask[:, 1:] != mask[:, :-1]).sum((1, 2))
    return (sideways + upright) * (torch.pi / 4)


def segment(video: Tensor) -> Segmentation | None:
    """Finds the object of a clip by its colour.

    The palette names the colour; the object's pixels are then those that lie nearer to its hue than to the
    background's, on the line between the two. Brightness is left out: stripes and checks must not count.

    Args:
        video: (T, H, W, 3) float32 in [0, 1].

    Returns:
        The object, or None where nothing in the clip has a colour of the palette, or nothing has none.
    """
    colored = _is_colored(video)
    sample = video[:, ::_SAMPLE, ::_SAMPLE]
    ground = sample[~_is_colored(sample)]
    candidates = video[colored]
    distance, nearest = torch.cdist(candidates, video.new_tensor(list(COLORS.values()))).min(1)
    nearest = nearest.where(distance < _SAME_COLOR, len(COLORS))
    counts = torch.bincount(nearest, minlength=len(COLORS) + 1)[:-1]
    winner = int(counts.argmax())
    if counts[winner] == 0 or len(ground) == 0:
        return None

    origin = _chroma(ground).median(0).values
    hue = _chroma(candidates[nearest == winner]).median(0).values - origin
    blend = (_chroma(video) - origin) @ (hue / hue.square().sum())  # 0 is background, 1 is object
    present = blend > 0.5
    mask, sizes = pieces(present)
    total, largest = present.sum((1, 2)), mask.sum((1, 2))
    short_side = min(video.shape[1:3])
    soft = ((blend - 0.5).abs() < 0.25).sum((1, 2))
    return Segmentation(
        color=list(COLORS)[winner],
        purity=float(counts[winner] / len(candidates)),
        mask=mask,
        backdrop=blend < 0.1,
        whole=largest / total.clamp(min=1),
        components=(sizes > _SPECK * total[:, None]).sum(1),
        area=largest / short_side**2,
        edge=soft / _outline_length(present).clamp(min=1) / short_side,
    )
