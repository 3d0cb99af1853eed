"""By what the plain pipeline computes, which a speed-up over it hangs on."""

from __future__ import annotations

from typing import Any

from accel.pipelines.sites import inspect_pipeline

# What a processor that leaves no choice computes by is its own code.
_OWN = "the processor's own"


def backend(pipe: Any) -> dict[str, Any]:
    """Of a pipeline of a known family with nothing on it: by what its denoisers attend, and whether they are compiled.

    Returns:
        "attention", the names of diffusers' attention backends that are active in the denoisers ("native" is torch's
        own attention), and "compiled", whether a denoiser or a block of one is.

    Raises:
        AccelError: a pipeline of no known family.
    """
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    active, _ = _AttentionBackendRegistry.get_active_backend()
    found = set()
    for denoiser in inspect_pipeline(pipe).denoisers:
        for module in denoiser.module.modules():
            processor = getattr(module, "processor", None)
            if processor is not None:
                found.add(_name(getattr(processor, "_attention_backend", _OWN) or active))
    return {"attention": ", ".join(sorted(found)), "compiled": compiled(pipe)}


def compiled(pipe: Any) -> bool:
    """Whether a denoiser or a block of one is compiled, where nothing of Accel is on."""
    denoisers = inspect_pipeline(pipe).denoisers
    modules = [one for denoiser in denoisers for one in (denoiser.module, *(b.module for b in denoiser.blocks))]
    return any(vars(module).get("_compiled_call_impl") is not None for module in modules)


def _name(backend: Any) -> str:
    return str(getattr(backend, "value", backend))
