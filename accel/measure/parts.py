"""Where the seconds of one call go: text encoders, denoisers, autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from accel.measure.wrapped import called, wrapped
from accel.pipelines.sites import Denoiser, inspect_pipeline, token_grid
from accel.runtime.device_clock import mark, seconds_between

TEXT, DENOISER, VAE = "text_encoder", "denoiser", "vae"


class Parts:
    """What was seen while :func:`watched_parts` was on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: dict[str, list[tuple[Any, Any]]] = {TEXT: [], DENOISER: [], VAE: []}
        self._within: dict[str, int] = dict.fromkeys(self._spans, 0)
        #: Image tokens of the first call of a denoiser, of one sample; None where the call does not tell.
        self.tokens: int | None = None
        self.denoiser_calls = 0

    @contextmanager
    def span(self, part: str) -> Iterator[None]:
        """Counts the time within for a part; a call inside another of the same part counts once."""
        self._within[part] += 1
        began = self._now() if self._within[part] == 1 else None
        try:
            yield
        finally:
            self._within[part] -= 1
            if began is not None:
                self._spans[part].append((began, self._now()))

    def seconds(self) -> dict[str, float]:
        """Seconds by part, on the device where that is a GPU; call it when the run is over."""
        return {part: sum(seconds_between(*span) for span in spans) for part, spans in self._spans.items()}

    def _now(self) -> Any:
        if self._device.type not in ("cpu", "cuda"):
            torch.accelerator.synchronize(self._device)
        return mark(self._device)


@contextmanager
def watched_parts(pipe: Any) -> Iterator[Parts]:
    """Watches the parts of a pipeline of a known family while it is called; what is put on it is taken off again.

    A pipeline without text encoder or autoencoder has 0 seconds there.

    Raises:
        AccelError: a pipeline of no known family.
    """
    facts = inspect_pipeline(pipe)
    parts = Parts(torch.device(getattr(pipe, "_execution_device", None) or "cpu"))

    def spanned(part: str) -> Callable[..., Any]:
        def wrapper(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with parts.span(part):
                return original(*args, **kwargs)

        return wrapper

    def denoise(denoiser: Denoiser) -> Callable[..., Any]:
        def wrapper(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if not parts.denoiser_calls:
                grid = token_grid(facts.family.grid, denoiser, args, kwargs)
                parts.tokens = None if grid is None else grid[0] * grid[1] * grid[2]
            parts.denoiser_calls += 1
            with parts.span(DENOISER):
                return original(*args, **kwargs)

        return wrapper

    with ExitStack() as stack:
        for denoiser in facts.denoisers:
            stack.enter_context(called(denoiser.module, denoise(denoiser)))
        for name, component in getattr(pipe, "components", {}).items():
            if name.startswith("text_encoder") and isinstance(component, nn.Module):
                stack.enter_context(wrapped(component, "forward", spanned(TEXT)))
            elif name == "vae" and component is not None:
                for method in ("encode", "decode"):
                    if hasattr(component, method):
                        stack.enter_context(wrapped(component, method, spanned(VAE)))
        yield parts
