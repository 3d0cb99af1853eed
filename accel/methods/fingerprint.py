"""A number that tells weights apart, for what was measured on some of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from accel.errors import AccelError
from accel.pipelines.sites import Denoiser

_VALUES = 64


def fingerprint(method: str, denoisers: Iterable[Denoiser]) -> str:
    """From names, shapes and a few values of every parameter.

    Raises:
        AccelError: weights are offloaded, so that nothing can be read.
    """
    found = hashlib.sha256()
    for denoiser in denoisers:
        for name, parameter in denoiser.module.named_parameters():
            if parameter.is_meta:
                raise AccelError(f"{method}: the weights of pipe.{denoiser.name} are offloaded: calibrate before that")
            values = parameter.detach().flatten()
            some = values[:: max(1, values.numel() // _VALUES)].float().cpu().numpy().tobytes()
            found.update(f"{denoiser.name}.{name}{tuple(parameter.shape)}".encode() + some)
    return found.hexdigest()[:16]
