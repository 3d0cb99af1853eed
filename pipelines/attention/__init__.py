"""Attention of a transformer handed to an `attend` function: processors that stand in for those of diffusers.

A processor of diffusers projects, normalizes and rotates, and then calls an attention. Its stand-in does the same, bit
for bit, and calls `attend(query, key, value, call)` instead. That is how a method that needs to know layer, step and
grid gets at attention; a backend of diffusers sees none of them.

    undo = [site.replace(processor_for(site)) for site in find_attention(denoiser)]
    ...                                         # in a hook in front of each block:
    with serve(attend, text_length(site, args, kwargs, grid)):
        proceed(*args, **kwargs)

Compiled blocks stay one graph for all sites, because the graph holds one operation that looks `attend` up when it runs.
"""

from accel.pipelines.attention.call import Attend, AttentionCall, External, spread_over_devices
from accel.pipelines.attention.finding import AttentionModuleSite, find_attention, processor_for
from accel.pipelines.attention.serving import counting, given_mask, serve, served, text_length
from accel.pipelines.attention.stand_in import StandIn
from accel.pipelines.attention.whole import HeadExchange

__all__ = [
    "Attend",
    "AttentionCall",
    "AttentionModuleSite",
    "External",
    "HeadExchange",
    "StandIn",
    "counting",
    "find_attention",
    "given_mask",
    "processor_for",
    "serve",
    "served",
    "spread_over_devices",
    "text_length",
]
