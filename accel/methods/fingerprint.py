"""A number that tells weights apart, for what was measured on some of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import chain

from accel.errors import AccelError
from accel.pipelines.offloading import groups
from accel.pipelines.sites import Denoiser

_VALUES = 64


def fingerprint(method: str, denoisers: Iterable[Denoiser]) -> str:
    """From names, shapes and a few values of every parameter, and of every weight that came stored.

    Raises:
        AccelError: weights are offloaded, so that nothing can be read.
    """
    found = hashlib.sha256()
    for denoiser in denoisers:
        module = denoiser.module
        # What a tensor has meanwhile whose numbers are on the disk are no numbers.
        away = any(group.offload_to_disk_path is not None for group in groups(module))
        codes = ((name, buffer) for name, buffer in module.named_buffers() if name.endswith(".codes"))
        for name, parameter in chain(module.named_parameters(), codes):
            if away or parameter.is_meta:
                raise AccelError(
                    f"{method}: the weights of pipe.{denoiser.name} are offloaded: call accel.enable first and offload "
                    "then"
                )
            values = parameter.detach().flatten()
            some = values[:: max(1, values.numel() // _VALUES)].float().cpu().numpy().tobytes()
            found.update(f"{denoiser.name}.{name}{tuple(parameter.shape)}".encode() + some)
    return found.hexdigest()[:16]


def adapters(denoisers: Iterable[Denoiser]) -> tuple[tuple[str, ...], ...]:
    """Names of the adapters, such as LoRAs, that are loaded into each denoiser; nothing is read of any weight."""
    return tuple(tuple(getattr(denoiser.module, "peft_config", ())) for denoiser in denoisers)
