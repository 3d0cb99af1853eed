"""Folders with a tiny Wan, as it is and with stored weights, and what reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import PipelineQuantizationConfig, WanPipeline

import accel
from accel.methods.stored_linear import StoredLinear
from tests.methods.quantized import run

LINEARS = 40


def load(folder: Path, config: Any = None, **kwargs: Any) -> Any:
    """The pipeline in a folder, its weights where a model that was built in memory has them."""
    if config is not None:
        kwargs["quantization_config"] = PipelineQuantizationConfig(quant_mapping={"transformer": config})
    pipe = WanPipeline.from_pretrained(folder, local_files_only=True, **kwargs)
    for component in pipe.components.values():
        for tensor in tensors(component):
            tensor.data = tensor.data.clone()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tensors(component: Any) -> list[torch.Tensor]:
    if not isinstance(component, torch.nn.Module):
        return []
    return [*component.parameters(), *component.buffers()]


def stored(pipe: Any) -> dict[str, StoredLinear]:
    found = pipe.transformer.named_modules()
    return {path: module for path, module in found if isinstance(module, StoredLinear)}


def one_step(pipe: Any) -> torch.Tensor:
    return run(pipe, num_inference_steps=1)


def config(**settings: Any) -> accel.StoredWeightsConfig:
    return accel.StoredWeightsConfig(**{"weights": "nvfp4", "rotate": True, **settings})
