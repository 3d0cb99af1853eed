"""The small pipelines that all conformance tests run on: genuine diffusers pipelines with random weights.

    from tests.tiny_pipelines import TINY

    case = TINY["wan"]
    pipe = case.build()
    latents = case.run(pipe)

They need no file and no network, have two heads of size 64 and 512 or more image or video tokens, take eight
steps (a chunk) with guidance on, and run in about a second on one core. `tests/test_tiny_pipelines.py` checks them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from peft import LoraConfig

from tests.tiny import (
    chroma,
    cogvideox_conditioned,
    cogview4,
    cosmos,
    guided_twice,
    hidream,
    hunyuan15,
    hunyuan_conditioned,
    image,
    joined,
    kin,
    ltx,
    ltx2,
    lumina2,
    mochi,
    motif,
    plain,
    skyreels,
    video,
    wan_conditioned,
    z_image,
)
from tests.tiny.calls import GUIDED_VIDEO as _WAN
from tests.tiny.calls import PROMPTED as _PROMPTED
from tests.tiny.calls import STEPS, TEXT_TOKENS, TRUE_GUIDANCE
from tests.tiny.calls import VIDEO as _VIDEO
from tests.tiny.calls import noise as _noise
from tests.tiny.weights import seeded


@dataclass(frozen=True, eq=False)
class TinyCase:
    """One pipeline, the call that runs it, and facts that tests may hold an implementation against."""

    name: str
    family: str
    build: Callable[..., DiffusionPipeline]
    """Takes `seed`, default 0; the same seed gives the same weights."""
    call: dict[str, Any]
    """Arguments of the default call, without a generator."""
    stacks: tuple[str, ...]
    """Attributes of each denoiser that hold the blocks on its main path, in the order in which they run."""
    tokens: int
    """Image or video tokens in the default call, without text."""
    text_tokens: int
    """Text tokens in one sequence with the image or video, padding included; 0 if there are none."""
    forwards: dict[str, int] = field(default_factory=lambda: {"transformer": STEPS})
    """How often the default call runs each denoiser."""
    chunks: tuple[int, ...] = ()
    """Frames of the video's chunks, for pipelines that make one after the other; `tokens` are those of the first."""
    filling: int = 0
    """How many of the forwards are no step: they keep the keys and values of chunks that are done."""
    smaller: int = 16
    """Pixels by which the height can be made less, where it can be chosen."""
    joined: tuple[str, ...] = ()
    """Stacks whose blocks are given image and text as one stream."""
    decoding: int = 0
    """How many of the blocks, the last ones, are given the video that the others made in the place of the text."""
    fewest_steps: int = 1
    """The pipeline fails with fewer, or does nothing; `run` takes no fewer."""
    references: int = 0
    """Tokens beside `tokens` that are those of pictures to go by; all of them are no grid."""
    other_guidance: dict[str, Any] | None = field(default_factory=lambda: {"guidance_scale": 1.0})
    """Arguments with which the call has one branch of guidance where it has two otherwise, or two where it has one;
    None where the pipeline has one form alone."""

    @property
    def lengths(self) -> set[int]:
        """Video or image tokens that a call of a denoiser may have."""
        return {self.tokens // self.chunks[0] * frames for frames in self.chunks} or {self.tokens}

    @property
    def text_lengths(self) -> set[int]:
        """Tokens that blocks may find in the place of the text."""
        return {self.text_tokens, self.tokens} if self.decoding else {self.text_tokens}

    @property
    def steps(self) -> int:
        """Steps of the default call, over all chunks; fewer are asked for where it begins with a picture."""
        return int(self.call["num_inference_steps"] * self.call.get("strength", 1.0)) * max(1, len(self.chunks))

    def run(self, pipe: DiffusionPipeline, *, seed: int = 0, **overrides: Any) -> torch.Tensor:
        """Call the pipeline with noise from `seed`; equal calls on equal weights give equal bits.

        Returns the latents in the pipeline's dtype; from DiT, which gives none, float32 pixels (B, H, W, C)
        in 0..1. Overrides go to the pipeline's call; `output_type` may be anything but "pil".
        """
        generator = torch.Generator().manual_seed(seed)
        call: Any = pipe
        arguments = {"generator": generator, **self.call, **overrides, "return_dict": False}
        arguments["num_inference_steps"] = max(self.fewest_steps, arguments["num_inference_steps"])
        if hasattr(pipe, "guider"):
            pipe.guider = pipe.guider.new(guidance_scale=arguments.pop("guidance_scale"))
        # CogView4 with a picture to go by draws from the global stream.
        with seeded(seed):
            return torch.as_tensor(call(**arguments)[0])


def add_lora(pipe: DiffusionPipeline, *, rank: int = 4, seed: int = 0, name: str = "tiny") -> None:
    """Load a random LoRA into the attention of every transformer of a tiny Wan or FLUX pipeline.

    peft starts the second factor at zero, which would make the LoRA do nothing; here it is random too.
    `transformer.unload_lora()` takes it out again.
    """
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    transformers = [getattr(pipe, part, None) for part in ("transformer", "transformer_2")]
    with seeded(seed):
        for transformer in filter(None, transformers):
            transformer.add_adapter(config, adapter_name=name)
            for parameter_name, parameter in transformer.named_parameters():
                if ".lora_B." in parameter_name:
                    torch.nn.init.normal_(parameter, std=rank**-0.5)


def save_locally(pipe: DiffusionPipeline, folder: str | Path) -> DiffusionPipeline:
    """Save the pipeline under `folder` and return what loads from there, which gives the same bits."""
    pipe.save_pretrained(folder)
    loaded = type(pipe).from_pretrained(folder, local_files_only=True)
    # Loaded weights may lie at any address, and matrix products on a CPU round by alignment; a copy is
    # aligned as the weights of a model that was built in memory.
    for component in loaded.components.values():
        if isinstance(component, torch.nn.Module):
            for parameter in component.parameters():
                parameter.data = parameter.data.clone()
    loaded.set_progress_bar_config(disable=True)
    return loaded


_FLUX = {**_PROMPTED, "height": 44, "width": 52, "guidance_scale": 3.5}
_SD3 = {**_PROMPTED, "negative_prompt": "blurred", "height": 48, "width": 48, "guidance_scale": 5.0}
# Both of one length, because a token is a character.
_LONG = {
    "prompt": "a red fox in the snow by a frozen lake",
    "negative_prompt": "a blurred grey picture of nothing much",
}
_QWEN = {**_PROMPTED, **_LONG, "max_sequence_length": 64, "height": 88, "width": 104, "true_cfg_scale": 8.0}
_PIXART = {**_SD3, "guidance_scale": 4.5, "use_resolution_binning": False, "clean_caption": False}
_SANA = {**_PIXART, "complex_human_instruction": None, "height": 96, "width": 96}
_FLUX2 = {**_FLUX, "text_encoder_out_layers": (0, 1, 2)}
_TWICE = {"transformer": 2 * STEPS}
_DUAL_AND_SINGLE = ("transformer_blocks", "single_transformer_blocks")

_CASES = (
    TinyCase("wan", "wan", video.wan, _WAN, ("blocks",), 576, 0, {"transformer": 2 * STEPS}),
    TinyCase("wan_unipc", "wan", video.wan_unipc, _WAN, ("blocks",), 576, 0, {"transformer": 2 * STEPS}),
    TinyCase(
        "wan22",
        "wan",
        video.wan22,
        _WAN,
        stacks=("blocks",),
        tokens=576,
        text_tokens=0,
        forwards={"transformer": STEPS, "transformer_2": STEPS},
    ),
    TinyCase(
        "wan_vace",
        "wan_vace",
        video.wan_vace,
        {**_WAN, "video": _noise(1, 5, 3, 48, 64)},
        stacks=("blocks",),
        tokens=576,
        text_tokens=0,
        forwards={"transformer": 2 * STEPS},
    ),
    *(TinyCase(**case) for case in wan_conditioned.CASES),
    TinyCase(
        "cogvideox",
        "cogvideox",
        video.cogvideox,
        {**_WAN, "guidance_scale": 6.0},
        stacks=("transformer_blocks",),
        tokens=576,
        text_tokens=TEXT_TOKENS,
    ),
    *(TinyCase(**case) for case in cogvideox_conditioned.CASES),
    *(TinyCase(**case) for case in cosmos.CASES),
    TinyCase(
        "hunyuan_video",
        "hunyuan_video",
        video.hunyuan_video,
        {
            **_VIDEO,
            "num_frames": 9,
            "guidance_scale": 4.5,
            "max_sequence_length": 64,
            "prompt_template": {"template": "{}", "crop_start": 0},
        },
        stacks=_DUAL_AND_SINGLE,
        tokens=576,
        text_tokens=64,
        other_guidance=TRUE_GUIDANCE,
    ),
    TinyCase(
        "anyflow_far",
        "anyflow_far",
        video.anyflow_far,
        {**_WAN, "height": 64},
        stacks=("blocks",),
        tokens=512,
        text_tokens=0,
        forwards={"transformer": 2 * STEPS + 1},
        chunks=(2, 1),
        filling=1,
    ),
    *(TinyCase(**case) for case in hunyuan_conditioned.CASES),
    *(TinyCase(**case) for case in hunyuan15.CASES),
    *(TinyCase(**case) for case in ltx.CASES),
    *(TinyCase(**case) for case in ltx2.CASES),
    *(TinyCase(**case) for case in mochi.CASES),
    *(TinyCase(**case) for case in motif.CASES),
    *(TinyCase(**case) for case in skyreels.CASES),
    TinyCase("flux", "flux", image.flux, _FLUX, _DUAL_AND_SINGLE, 572, TEXT_TOKENS, other_guidance=TRUE_GUIDANCE),
    TinyCase(
        "flux_controlnet",
        "flux",
        image.flux_controlnet,
        {**_FLUX, "control_image": 2 * _noise(1, 3, 44, 52) - 1},
        _DUAL_AND_SINGLE,
        tokens=572,
        text_tokens=TEXT_TOKENS,
        other_guidance=TRUE_GUIDANCE,
    ),
    TinyCase(
        "dit",
        "dit",
        image.dit,
        {"class_labels": [207], "guidance_scale": 4.0, "num_inference_steps": STEPS, "output_type": "np"},
        stacks=("transformer_blocks",),
        tokens=576,
        text_tokens=0,
    ),
    TinyCase(
        "sd3_heun",
        "sd3",
        image.sd3_heun,
        _SD3,
        stacks=("transformer_blocks",),
        tokens=576,
        text_tokens=16 + TEXT_TOKENS,
        forwards={"transformer": 2 * STEPS - 1},
    ),
    TinyCase("sd35", "sd3", image.sd35, _SD3, ("transformer_blocks",), 576, 16 + TEXT_TOKENS),
    TinyCase("pixart", "pixart", plain.pixart, _PIXART, ("transformer_blocks",), 576, 0),
    TinyCase("sana", "sana", plain.sana, _SANA, ("transformer_blocks",), 576, 0, smaller=32),
    TinyCase(
        "flux2",
        "flux2",
        joined.flux2,
        _FLUX2,
        _DUAL_AND_SINGLE,
        572,
        TEXT_TOKENS,
        joined=_DUAL_AND_SINGLE[1:],
        other_guidance=None,
    ),
    TinyCase(
        "flux2_klein",
        "flux2",
        joined.flux2_klein,
        _FLUX2,
        _DUAL_AND_SINGLE,
        572,
        TEXT_TOKENS,
        _TWICE,
        joined=_DUAL_AND_SINGLE[1:],
    ),
    TinyCase(
        "qwenimage",
        "qwenimage",
        guided_twice.qwenimage,
        _QWEN,
        ("transformer_blocks",),
        572,
        38,
        _TWICE,
        other_guidance={"true_cfg_scale": 1.0},
    ),
    *(TinyCase(**case) for module in (cogview4, chroma, lumina2, z_image, hidream) for case in module.CASES),
)

TINY: dict[str, TinyCase] = {case.name: case for case in _CASES}

KIN: dict[str, TinyCase] = {
    case["name"]: TinyCase(**case)
    for module in (
        wan_conditioned,
        cogvideox_conditioned,
        cogview4,
        cosmos,
        hunyuan_conditioned,
        hunyuan15,
        ltx,
        ltx2,
        motif,
        skyreels,
    )
    for case in module.KIN
} | {
    name: replace(
        TINY[like], **{**changes, "name": name, "build": build, "call": {**TINY[like].call, **changes.get("call", {})}}
    )
    for name, like, build, changes in kin.KIN
}
"""More pipelines of transformers that the others have: for a test of each instead of all tests."""
