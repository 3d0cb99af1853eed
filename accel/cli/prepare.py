"""Getting a pipeline ready as a request asks: loading, LoRAs, place, decoding, compiling."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from accel.cli.exits import RunFailed, note, one_line
from accel.cli.request import Lora, Request
from accel.config import AccelConfig
from accel.errors import AccelError


def place(request: Request) -> str:
    """The device to run on; refuses one that this machine does not have."""
    if request.device is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        return found.type if found is not None else "cpu"
    try:
        torch.empty(0, device=request.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        known = torch.accelerator.current_accelerator(check_available=True)
        nearest = f"{known.type} or cpu" if known is not None else "cpu"
        raise AccelError(f"this machine has no device {request.device!r} that torch can use; use {nearest}") from error
    return request.device


def number_format(request: Request, device: str) -> str | None:
    """The dtype to load in; None leaves the choice to the loader."""
    if request.dtype is not None or request.recorded is not None:
        return request.dtype
    # Models other than the demo are large, and are published for bfloat16.
    return "bfloat16" if request.model != "demo" and torch.device(device).type == "cuda" else None


def check_offload(request: Request, configs: Iterable[AccelConfig]) -> None:
    """Refuses, before anything is loaded, what groups would have hold of before it is quantized."""
    from accel.integrations.loading import came_stored

    method = next((config.quantize.method for config in configs if config.quantize is not None), None)
    if request.cpu_offload != "group" or method is None or came_stored(request.model, revision=request.revision):
        return
    raise AccelError(
        f"{method}: --cpu-offload group takes hold of the weights before they are quantized: use --cpu-offload model, "
        "or a model that was saved with stored weights"
    )


def load(request: Request, device: str, dtype: str | None) -> Any:
    """The pipeline, on its device or offloaded, with its LoRAs."""
    from accel.integrations.loading import load_pipeline

    resident = device if request.cpu_offload is None else None
    files = {"revision": request.revision, "variant": request.variant}
    pipe = load_pipeline(
        request.model,
        size=request.size,
        torch_dtype=dtype,
        device=resident,
        **{name: value for name, value in files.items() if value is not None},
    )
    _add_loras(pipe, request.loras)
    if request.cpu_offload is not None:
        _offload(pipe, request.cpu_offload, device)
    if request.vae_tiling:
        vae: Any = getattr(pipe, "vae", None)
        if not hasattr(vae, "enable_tiling"):
            raise AccelError(f"{type(pipe).__name__} cannot decode in tiles; leave --vae-tiling out")
        vae.enable_tiling()
    if request.compile:
        compile_blocks(pipe)
    return pipe


def compile_blocks(pipe: Any) -> None:
    """Compiles the repeated blocks of every denoiser, each block for itself."""
    from accel.pipelines.sites import inspect_pipeline

    for denoiser in inspect_pipeline(pipe).denoisers:
        model: Any = denoiser.module
        if getattr(model, "_repeated_blocks", None):
            model.compile_repeated_blocks()
        else:
            for block in denoiser.blocks:
                block.module.compile()


def _offload(pipe: Any, kind: str, device: str) -> None:
    if torch.device(device).type == "cpu":
        note(f"--cpu-offload {kind} saves nothing on a CPU, where the weights are in main memory anyway")
    if kind == "model":
        if pipe.model_cpu_offload_seq is None:
            raise AccelError(f"{type(pipe).__name__} has no order for --cpu-offload model; use --cpu-offload group")
        pipe.enable_model_cpu_offload(device=device)
    else:
        # With a stream, diffusers brings buffers onto the device and takes none off it, and stored weights are buffers.
        stream = torch.device(device).type == "cuda" and not _has_stored(pipe)
        pipe.enable_group_offload(torch.device(device), offload_type="leaf_level", use_stream=stream)


def _has_stored(pipe: Any) -> bool:
    from accel.methods.stored_linear import StoredLinear

    parts = (part for part in pipe.components.values() if isinstance(part, torch.nn.Module))
    return any(isinstance(module, StoredLinear) for part in parts for module in part.modules())


def _add_loras(pipe: Any, loras: tuple[Lora, ...]) -> None:
    if not loras:
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise AccelError(f"{type(pipe).__name__} takes no LoRA; leave --lora out")
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise AccelError("a LoRA needs the package peft: pip install peft") from error
    names = []
    for number, lora in enumerate(loras, start=1):
        names.append(f"lora_{number}")
        path = Path(lora.name)
        where = (str(path.parent), {"weight_name": path.name}) if lora.sha256 else (lora.name, {})
        try:
            pipe.load_lora_weights(where[0], adapter_name=names[-1], use_safetensors=True, **where[1])
        except Exception as error:
            # diffusers and peft raise nearly everything here, from KeyError to their own.
            raise AccelError(
                f"the LoRA {lora.name} does not fit {type(pipe).__name__}: {one_line(str(error))}"
            ) from error
        if names[-1] not in {name for part in pipe.get_list_adapters().values() for name in part}:
            raise AccelError(f"the LoRA {lora.name} holds nothing for {type(pipe).__name__}; is it for another model?")
    try:
        pipe.set_adapters(names, [lora.scale for lora in loras])
    except ValueError as error:
        raise RunFailed(f"the LoRAs cannot be used together: {one_line(str(error))}") from error
