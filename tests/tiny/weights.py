"""Seeded construction, and weights under which every block visibly acts.

The models of diffusers are not made to be run untrained: some output layers start at zero, gates start near
zero, attention is all but uniform, and what a block does at one step says little about the next. A test of a
cache, a sparse attention or a quantizer proves little there, so the denoisers' weights are drawn again.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.transformers.transformer_z_image import TimestepEmbedder
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

LIVENED = ("transformer", "transformer_2", "controlnet")
QUERY_KEY_NORM = (
    ("to_q", "to_k", "norm_q"),
    ("add_q_proj", "add_k_proj", "norm_added_q"),
    ("to_q_t", "to_k_t", "q_rms_norm_t"),
)
SHARPNESS = 2.0
"""Factor on the attention scores, whose standard deviation would be about 1 otherwise."""
SHARED_BIAS = 1.5
"""Standard deviation of the bias that queries and keys have in common."""
SLOW_FREQUENCY = 0.002
"""Radians per unit of timestep up to which a time embedder listens: two radians over a run from 1000 to 0."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a CPU stream that starts at `seed`, and put the caller's CPU stream back afterwards.

    `torch.manual_seed` would also reseed the accelerators, so only the CPU's own generator is touched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def tiny(build: Callable[[], Any]) -> Callable[..., DiffusionPipeline]:
    """Make a builder reproducible and its pipeline ready for tests.

    The decorated builder takes `seed` (default 0). Its pipeline is float32, in evaluation mode and shows no
    progress bar; the same seed gives the same bits, and the global random state stays as it was.
    """

    @wraps(build)
    def seeded_build(seed: int = 0) -> DiffusionPipeline:
        with seeded(seed):
            pipe = build()
            for name in LIVENED:
                if getattr(pipe, name, None) is not None:
                    liven(getattr(pipe, name))
        for component in pipe.components.values():
            if isinstance(component, nn.Module):
                component.eval()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return seeded_build


def liven(model: nn.Module) -> None:
    """Draw the weights of all linear and convolution layers again, in place, from the global CPU stream.

    Each weight is normal with variance 1 / fan-in, which keeps the variance of a signal that goes through and
    leaves no layer at zero. Time embedders hear the slow part of the timestep's sinusoids only: what a block
    does then changes a little from step to step, as in a trained model. Attention is focused (see `_focus`).
    All else, such as the biases, norms and embeddings, stays as constructed.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    for module in model.modules():
        if isinstance(module, TimestepEmbedding):
            _listen_slowly(module.linear_1)
        if isinstance(module, TimestepEmbedder):
            _listen_slowly(module.mlp[0])
        for names in QUERY_KEY_NORM:
            to_q, to_k, norm_q = (getattr(module, name, None) for name in names)
            # HiDream's name for it.
            _focus(to_q, to_k, getattr(module, "q_rms_norm", None) if norm_q is None and "to_q" in names else norm_q)
        if "pooled_projection_dim" not in model.config:
            _let_text_be_seen(*(getattr(module, name, None) for name in ("to_q", "add_q_proj", "add_k_proj")))


@torch.no_grad()
def _listen_slowly(first: nn.Linear) -> None:
    """Fade the columns of fast sinusoids: two halves (cosines and sines), each of falling frequency."""
    width = first.in_features
    half = width // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half) / half).repeat(2)
    gain = 1 / (1 + (frequency / SLOW_FREQUENCY) ** 2)
    first.weight.mul_(gain * (width / gain.square().sum()).sqrt())


@torch.no_grad()
def _focus(to_q: nn.Linear | None, to_k: nn.Linear | None, norm_q: Any) -> None:
    """Sharpen the attention scores and, where positions are rotary, let near tokens see each other most.

    A bias b that queries and keys share adds b R(distance) b to each score, the most at distance zero; where the
    projections have no bias they share a part of their weights, and tokens see most those that are like them. The
    families here that do not normalize their queries have no rotary positions either, and go without. A norm without
    weights cannot be sharpened.
    """
    if norm_q is not None:
        if norm_q.weight is not None:
            norm_q.weight.mul_(SHARPNESS)
    elif to_q is not None:
        to_q.weight.mul_(SHARPNESS)
    if norm_q is None or to_q is None or to_k is None:
        return
    if to_q.bias is None:
        # Grouped keys share what the first queries have.
        to_k.weight.add_(to_q.weight[: len(to_k.weight)]).div_(math.sqrt(2))
    else:
        nn.init.normal_(to_q.bias, std=SHARED_BIAS)
        to_k.bias.copy_(to_q.bias)


@torch.no_grad()
def _let_text_be_seen(to_q: nn.Linear | None, add_q: nn.Linear | None, add_k: nn.Linear | None) -> None:
    """Give the text the bias of the image, where attention alone hears it: image tokens would look past it."""
    if to_q is not None and add_q is not None and add_k is not None and to_q.bias is not None:
        add_q.bias.copy_(to_q.bias)
        add_k.bias.copy_(to_q.bias)
