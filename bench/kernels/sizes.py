"""The geometries of published models at the sizes that people run them at, and of the model that ships here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Size:
    """What one call of a transformer's block has to do, for one result and without guidance.

    `grid` is (time, height, width) in tokens, `text` are tokens that stand in the same sequence (0 where text has an
    attention of its own) and `text_at` is where. `source` says where the numbers are from.
    """

    grid: tuple[int, int, int]
    heads: int
    head_size: int
    feed_forward: int
    source: str
    text: int = 0
    text_at: Literal["none", "prefix", "suffix"] = "none"

    @property
    def tokens(self) -> int:
        """Of the sequence, text included."""
        return math.prod(self.grid) + self.text

    @property
    def width(self) -> int:
        """Channels of the hidden states."""
        return self.heads * self.head_size

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Channels and outputs of the linears that most of the time goes to."""
        return {
            "attention": (self.width, self.width),
            "feed-forward in": (self.width, self.feed_forward),
            "feed-forward out": (self.feed_forward, self.width),
        }


_WAN_1B = {"heads": 12, "head_size": 128, "feed_forward": 8960}
_WAN_14B = {"heads": 40, "head_size": 128, "feed_forward": 13_824}
_WAN = "Wan 2.1-T2V-{} of scripts/convert_wan_to_diffusers.py of diffusers, {}; frames by 4, sides by 16"

SIZES = {
    "demo": Size((33, 8, 8), 4, 64, 768, "the configuration that ships, at its standard size: 128×128, 65 frames"),
    "wan-1.3b-small": Size((4, 32, 32), **_WAN_1B, source=_WAN.format("1.3B", "512×512, 13 frames")),
    "wan-1.3b-480p": Size((21, 30, 52), **_WAN_1B, source=_WAN.format("1.3B", "832×480, 81 frames")),
    "wan-14b-480p": Size((21, 30, 52), **_WAN_14B, source=_WAN.format("14B", "832×480, 81 frames")),
    "wan-14b-720p": Size((21, 45, 80), **_WAN_14B, source=_WAN.format("14B", "1280×720, 81 frames")),
    "hunyuan-video-720p": Size(
        (33, 45, 80),
        heads=24,
        head_size=128,
        feed_forward=12_288,
        text=256,
        text_at="suffix",
        source="defaults of diffusers' HunyuanVideoTransformer3DModel and its pipeline's text, 1280×720, 129 frames",
    ),
    "flux-1024": Size(
        (1, 64, 64),
        heads=24,
        head_size=128,
        feed_forward=12_288,
        text=512,
        text_at="prefix",
        source="defaults of diffusers' FluxTransformer2DModel and its pipeline's text, 1024×1024",
    ),
    "cogvideox-5b-480p": Size(
        (13, 30, 45),
        heads=48,
        head_size=64,
        feed_forward=12_288,
        text=226,
        text_at="prefix",
        source="5B of scripts/convert_cogvideox_to_diffusers.py of diffusers, 720×480, 49 frames",
    ),
}
