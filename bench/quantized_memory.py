"""What the transformers of published models take in bfloat16 and in NVFP4, counted on the meta device.

python -m bench.quantized_memory [--write]

No weight is read or made: the real classes of diffusers are built from the published configurations, and bytes are
those of the formula that the tests hold against what is really stored.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from accel.kernels.quantized_linear import ACTIVATIONS
from accel.methods.layer_choice import Layer, choose_layers
from accel.methods.weight_bytes import scratch_bytes, stored_bytes
from accel.pipelines.sites import inspect_pipeline

ROOT = Path(__file__).resolve().parents[1]
_BF16 = 2


@dataclass(frozen=True)
class Geometry:
    """A published transformer: its pipeline and class in diffusers, and its configuration with the source."""

    pipeline: str
    transformer: str
    source: str
    config: dict[str, Any]


GEOMETRIES = {
    "Wan 2.1-14B": Geometry(
        "WanPipeline",
        "WanTransformer3DModel",
        "Wan-T2V-14B in scripts/convert_wan_to_diffusers.py of diffusers",
        {
            "patch_size": (1, 2, 2),
            "num_attention_heads": 40,
            "attention_head_dim": 128,
            "in_channels": 16,
            "out_channels": 16,
            "text_dim": 4096,
            "freq_dim": 256,
            "ffn_dim": 13824,
            "num_layers": 40,
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
        },
    ),
    "CogVideoX-5B": Geometry(
        "CogVideoXPipeline",
        "CogVideoXTransformer3DModel",
        "5B in scripts/convert_cogvideox_to_diffusers.py of diffusers, with the defaults of the class",
        {
            "num_attention_heads": 48,
            "attention_head_dim": 64,
            "in_channels": 16,
            "out_channels": 16,
            "time_embed_dim": 512,
            "text_embed_dim": 4096,
            "num_layers": 42,
            "patch_size": 2,
            "use_rotary_positional_embeddings": True,
        },
    ),
    "CogVideoX-2B": Geometry(
        "CogVideoXPipeline",
        "CogVideoXTransformer3DModel",
        "2B in scripts/convert_cogvideox_to_diffusers.py of diffusers, with the defaults of the class",
        {
            "num_attention_heads": 30,
            "attention_head_dim": 64,
            "in_channels": 16,
            "out_channels": 16,
            "time_embed_dim": 512,
            "text_embed_dim": 4096,
            "num_layers": 30,
            "patch_size": 2,
            "use_rotary_positional_embeddings": False,
        },
    ),
}


def measure(geometry: Geometry) -> dict[str, Any]:
    """Bytes of all parameters in bfloat16, in NVFP4 as `quantize="mixed"` stores them with its defaults, and with
    `quantize_modulation=True`; and the most that one product on a GPU makes of its weight, by its activations."""
    with torch.device("meta"):
        model = getattr(diffusers, geometry.transformer).from_config(geometry.config)
    parts = dict.fromkeys(("tokenizer", "text_encoder", "vae", "scheduler"))
    facts = inspect_pipeline(getattr(diffusers, geometry.pipeline)(**parts, transformer=model))
    (denoiser,) = facts.denoisers
    found = {
        modulation: choose_layers(
            denoiser,
            left=facts.family.modules_to_not_convert,
            modulation=facts.family.modulation,
            take_modulation=modulation,
            taken=(),
        )[0]
        for modulation in (False, True)
    }
    plain = sum(parameter.numel() for parameter in model.parameters()) * _BF16
    blocks, both = found[False], found[True]
    figures: dict[str, Any] = {"parameters": plain // _BF16, "bf16_bytes": plain}
    for name, layers in (("nvfp4", blocks), ("nvfp4_with_modulation", both)):
        taken = _BF16 * sum(_numbers(layer) for layer in layers)
        stored = sum(stored_bytes("nvfp4", *_shape(layer)) for layer in layers)
        held = plain - taken + stored
        figures[name] = {"linears": len(layers), "bytes": held, "ratio": round(plain / held, 4)}
    figures["scratch_bytes"] = {
        activation: max(scratch_bytes("nvfp4", activation, *_shape(layer), _BF16, "triton") for layer in blocks)
        for activation in ACTIVATIONS
    }
    return {"source": geometry.source, "config": geometry.config, **figures}


def markdown(figures: dict[str, dict[str, Any]]) -> str:
    """The table for people."""
    headings = ["model", "parameters", "bf16", "NVFP4", "ratio", "NVFP4 with modulation", "ratio", "INT8 scratch"]
    text = [
        "# Memory of transformers in NVFP4",
        "",
        "Printed by `python -m bench.quantized_memory`.",
        "",
        "Bytes of all parameters of the transformer, counted and not measured: diffusers' classes on the meta device.",
        "NVFP4 are the weights of the linears in the blocks with all their scales, and everything else in bfloat16;",
        "with modulation is `quantize_modulation=True`; no linear is spared (`static_share=0`). GB are 10⁹ bytes.",
        "Scratch is what the largest product with INT8 activations makes of its weight, for that call alone; products",
        "with other activations decode it in registers on a GPU, or with NVFP4 activations, where it multiplies these",
        "by itself, make two copies of the scales of its groups. The text encoder, the decoder and activations are not",
        "in these figures.",
        "",
        f"| {' | '.join(headings)} |",
        "|" + "---|" * len(headings),
    ]
    for name, found in figures.items():
        cells = [name, f"{found['parameters'] / 1e9:.3f} billion", _gigabytes(found["bf16_bytes"])]
        for form in ("nvfp4", "nvfp4_with_modulation"):
            cells += [_gigabytes(found[form]["bytes"]), f"{found[form]['ratio']:.2f}×"]
        cells.append(f"{found['scratch_bytes']['int8'] / 1e6:.0f} MB")
        text.append(f"| {' | '.join(cells)} |")
    text += ["", "Configurations:", "", *(f"- {name}: {found['source']}" for name, found in figures.items())]
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table to bench/results")
    options = parser.parse_args()
    figures = {name: measure(geometry) for name, geometry in GEOMETRIES.items()}
    text = markdown(figures)
    print(text)
    if options.write:
        folder = ROOT / "bench" / "results"
        (folder / "quantized_memory.md").write_text(text)
        told = {"command": "python -m bench.quantized_memory", "diffusers": diffusers.__version__, "models": figures}
        (folder / "quantized_memory.json").write_text(json.dumps(told, indent=1) + "\n")


def _shape(layer: Layer) -> tuple[int, int]:
    return layer.module.out_features, layer.module.in_features


def _numbers(layer: Layer) -> int:
    outputs, channels = _shape(layer)
    return outputs * channels


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB"


if __name__ == "__main__":
    main()
