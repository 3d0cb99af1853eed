"""Tiny pipelines that differ little from another: in their class alone, in some channels, or by a ControlNet."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from diffusers import (
    ChromaImg2ImgPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    PixArtAlphaPipeline,
    QwenImageImg2ImgPipeline,
    StableDiffusion3Img2ImgPipeline,
    ZImageImg2ImgPipeline,
)
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from tests.tiny import chroma, guided_twice, image, plain, z_image
from tests.tiny.calls import STEPS, noise, picture

STRENGTH = 0.75
BEGUN = int(STEPS * STRENGTH)
"""Steps of a call that begins with a picture."""


def _of(kind: type, base: Callable[..., DiffusionPipeline]) -> Callable[..., DiffusionPipeline]:
    """A builder of a pipeline of the class `kind` from the parts of another."""

    @wraps(base)
    def build(seed: int = 0) -> DiffusionPipeline:
        first = base(seed)
        pipe = kind(**first.components)
        pipe.set_progress_bar_config(disable=True)
        vars(pipe).update({key: value for key, value in vars(first).items() if key.startswith("prompt_template")})
        return pipe

    return build


def _begun(height: int, width: int, calls: int = 1) -> dict[str, Any]:
    """What is different where an image begins with another: with `calls` of the transformer in a step."""
    return {
        "call": {"image": noise(1, 3, height, width), "strength": STRENGTH},
        "forwards": {"transformer": calls * BEGUN},
    }


_FLUX = (44, 52)
_HOLE = {"image": noise(1, 3, *_FLUX), "mask_image": noise(1, 1, *_FLUX)}
# Sides of 64 pixels to a token.
_EDITED = {"height": 22 * 64, "width": 26 * 64}

# Name, the case that has all else, its builder, and what differs.
KIN: tuple[tuple[str, str, Callable[..., DiffusionPipeline], dict[str, Any]], ...] = (
    (
        "flux_kontext",
        "flux",
        _of(FluxKontextPipeline, image.flux),
        {
            "call": {"image": noise(1, 3, 32, 32), "max_area": _FLUX[0] * _FLUX[1], "_auto_resize": False},
            "references": 256,
        },
    ),
    ("flux_fill", "flux", image.flux_fill, {"call": _HOLE}),
    ("flux_control", "flux", image.flux_control, {"call": {"control_image": noise(1, 3, *_FLUX)}}),
    (
        "flux_inpaint",
        "flux",
        _of(FluxInpaintPipeline, image.flux),
        {"call": {**_HOLE, "strength": STRENGTH}, "forwards": {"transformer": BEGUN}},
    ),
    ("flux_img2img", "flux", _of(FluxImg2ImgPipeline, image.flux), _begun(*_FLUX)),
    (
        "qwenimage_edit",
        "qwenimage",
        guided_twice.qwenimage_edit,
        {"call": {**_EDITED, "image": picture(64)}, "references": 256},
    ),
    (
        "qwenimage_edit_plus",
        "qwenimage",
        guided_twice.qwenimage_edit_plus,
        # A mark of 54 letters stands in the text for each picture.
        {"call": {**_EDITED, "image": [picture(64), picture(48)]}, "references": 512, "text_tokens": 38 + 2 * 54},
    ),
    ("qwenimage_img2img", "qwenimage", _of(QwenImageImg2ImgPipeline, guided_twice.qwenimage), _begun(88, 104, 2)),
    (
        "qwenimage_controlnet",
        "qwenimage",
        guided_twice.qwenimage_controlnet,
        {"call": {"control_image": noise(1, 3, 88, 104)}},
    ),
    ("sd3_img2img", "sd35", _of(StableDiffusion3Img2ImgPipeline, image.sd35), _begun(48, 48)),
    ("sd3_controlnet", "sd35", image.sd3_controlnet, {"call": {"control_image": noise(1, 3, 48, 48)}}),
    ("pixart_alpha", "pixart", _of(PixArtAlphaPipeline, plain.pixart), {}),
    ("chroma_img2img", "chroma", _of(ChromaImg2ImgPipeline, chroma.chroma), _begun(*_FLUX, 2)),
    ("z_image_img2img", "z_image", _of(ZImageImg2ImgPipeline, z_image.z_image), _begun(*_FLUX)),
)
