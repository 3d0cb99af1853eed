"""`load_pipeline` with weights that are stored while they load, or that came stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.quantizers import PipelineQuantizationConfig

from accel.config import AccelConfig
from accel.errors import AccelError
from accel.integrations.config import FORMATS, Quantizer, StoredWeightsConfig
from accel.methods.base import MethodConfig
from accel.methods.quantization_settings import QuantizationConfig
from accel.pipelines import loading
from accel.pipelines.families import families
from accel.pipelines.folders import read_index
from accel.pipelines.sites import family_of


def load_pipeline(
    model: str | Path = "demo",
    *,
    size: str | None = None,
    torch_dtype: str | torch.dtype | Mapping[str, str | torch.dtype] | None = None,
    device: str | torch.device | None = None,
    quantize: str | MethodConfig | None = None,
    **kwargs: Any,
) -> DiffusionPipeline:
    """Load a diffusers pipeline of the right class, from safetensors only, running no code of the model's.

    An `accel_config.json` in a model's folder is what `accel.enable` goes by where it is given the pipeline alone; it
    is read, or refused, there.

    Args:
        model: `"demo"`, the built-in model; or a folder that `save_pretrained` wrote; or a hub id such as
            `"org/name"`, downloaded unless it is in the cache. A folder that is called demo is `"./demo"`.
        size: of the demo only: `"standard"` (the default; 128x128 pixels, 65 frames) or `"quick"` (9 frames).
        torch_dtype: a torch dtype or its name, one of float32, bfloat16 and float16; or a table of them by
            component, with `"default"` for the rest, as in diffusers. Without it the demo is float32, and
            other models load as diffusers loads them.
        device: where to put the pipeline, such as `"cuda"`; without it, it stays where diffusers loads it.
        quantize: name or configuration of a quantization. The weights of the transformers are stored as it has them,
            one by one while they are read, so that the whole of them is never in memory; `accel.enable` with the same
            `quantize` takes them as they are. A folder that was saved so needs no `quantize`, and a transformer that is
            given as an object takes none.
        **kwargs: what `DiffusionPipeline.from_pretrained` takes: components as objects (`vae=...`),
            `revision`, `variant`, `token`, `cache_dir`, `local_files_only`, `device_map` and the like.

    Raises:
        AccelError: what is asked for cannot be loaded; one line, with diffusers' own error as its cause.
    """
    if quantize is not None:
        if kwargs.get("quantization_config") is not None:
            raise AccelError("quantize and quantization_config both say how weights are stored; give one of the two")
        config = AccelConfig(quantize=quantize).quantize
        there = next((name for name in _denoisers() if kwargs.get(name) is not None), None)
        if there is not None and config is not None:
            raise AccelError(
                f"quantize stores weights while they are loaded, and {there} was loaded before: leave quantize out, "
                f"and load {there} with quantization_config=accel.StoredWeightsConfig(...)"
            )
        stored = _stored(model, config, kwargs) if isinstance(config, QuantizationConfig) else {}
        if stored:
            kwargs["quantization_config"] = PipelineQuantizationConfig(quant_mapping=stored)
    return loading.load_pipeline(model, size=size, torch_dtype=torch_dtype, device=device, **kwargs)


def _stored(model: str | Path, config: QuantizationConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """By the name of each transformer that is to be stored while it loads."""
    wanted = StoredWeightsConfig.of(config)
    where = loading.hub_options(given)
    pipeline, folder = loading.look_up(model, **where)
    denoisers = family_of(pipeline)[0].denoisers
    index = read_index(folder)
    names = [name for name in denoisers if name not in given and (index.get(name) or [None])[0] is not None]
    _, folder = loading.look_up(model, configs=names, **where)
    found = {name: _came_in(folder / name / "config.json") for name in names}
    for name, before in found.items():
        if before not in (None, wanted.weights.upper()):
            raise AccelError(
                f"{config.method} has weights in {wanted.weights.upper()}, and those of {name} in {folder} are stored "
                f"already, in {before}: leave quantize out, or load the original model"
            )
    return {name: wanted for name, before in found.items() if before is None}


def came_stored(model: str | Path, *, revision: str | None = None) -> bool:
    """Whether the weights of all transformers of a model were saved as Accel stores them; reads no weights."""
    pipeline, folder = loading.look_up(model, configs=_denoisers(), revision=revision)
    index = read_index(folder)
    names = [name for name in family_of(pipeline)[0].denoisers if (index.get(name) or [None])[0] is not None]
    formats = [weight_format.upper() for weight_format in FORMATS]
    return all(_came_in(folder / name / "config.json") in formats for name in names)


def _denoisers() -> list[str]:
    """What pipelines call their transformers."""
    return sorted({name for family in families().values() for name in family.denoisers})


def _came_in(path: Path) -> str | None:
    """The format in which a component's weights are stored already, or None."""
    try:
        before = json.loads(path.read_text(encoding="utf-8")).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return None  # Loading it says what is wrong.
    if not isinstance(before, dict):
        return None
    method = before.get("quant_method")
    return str(before.get("weights")).upper() if method == Quantizer.ACCEL.value else f"the format of {method}"
