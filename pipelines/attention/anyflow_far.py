"""Self-attention of AnyFlow-FAR: the tokens of a chunk to themselves and to kept keys of the chunks before."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_anyflow_far import apply_rotary_emb
from torch import Tensor, nn

from accel.pipelines.attention.call import AttentionCall, External
from accel.pipelines.attention.serving import served
from accel.pipelines.attention.stand_in import StandIn

# Flex attention's blocks: queries and keys are padded with zeros to a multiple of it.
_MULTIPLE = 128
_SMALLEST_HEAD = 16


class AnyFlowChunkAttention(StandIn):
    """Stands in for `AnyFlowCausalAttnProcessor` where a step reads what is kept of earlier chunks.

    Calls that keep a chunk's keys and values, and those without such a cache, are for the original. In a compiled block
    the attention goes to whoever serves the block, whatever `attend` is.
    """

    originals = ("diffusers.models.transformers.transformer_anyflow_far:AnyFlowCausalAttnProcessor",)
    text = "none"
    dispatched = True

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Any = None,
        rotary_emb: dict[str, Tensor] | None = None,
        kv_cache: dict[str, Tensor] | None = None,
        kv_cache_flag: dict[str, Any] | None = None,
    ) -> Tensor:
        if (
            kv_cache is None
            or kv_cache_flag is None
            or kv_cache_flag["is_cache_step"]
            or rotary_emb is None
            or attention_mask is not None
            or encoder_hidden_states is not None
            # The original says so itself.
            or self.original._attention_backend not in self.original._SUPPORTED_BACKENDS
        ):
            return self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb, kv_cache, kv_cache_flag
            )
        query = attn.norm_q(attn.to_q(hidden_states)).to(hidden_states.dtype)
        key = attn.norm_k(attn.to_k(hidden_states)).to(hidden_states.dtype)
        query, key, value = (
            x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (query, key, attn.to_v(hidden_states))
        )
        tokens = query.shape[2]
        angles = rotary_emb["key"]
        query, key = apply_rotary_emb(query, rotary_emb["query"]), apply_rotary_emb(key, angles[:, :, -tokens:])
        padding = (0, 0, 0, -tokens % _MULTIPLE)
        key, value = F.pad(key, padding), F.pad(value, padding)
        far, near = (
            kv_cache[name][:, :, :, : kv_cache_flag[count]]
            for name, count in (
                ("compressed_cache", "num_cached_compressed_tokens"),
                ("full_cache", "num_cached_full_tokens"),
            )
        )
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if torch.compiler.is_compiling():
            output = _attend(query, key, value, far, near, angles)
        else:
            external = _external(far, near, angles)
            output = self.attend(query, key, value, replace(self.call(None, 0), external=external))
        output = output.flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](output))

    @classmethod
    def refusal(cls, attn: nn.Module) -> str | None:
        module: Any = attn
        size = module.inner_dim // module.heads
        if size < _SMALLEST_HEAD:
            return f"diffusers pads its heads of {size} to {_SMALLEST_HEAD}, which no trained model needs"
        return None


def _external(far: Tensor, near: Tensor, angles: Tensor) -> External:
    """Of the far and the near part, (2, B, H, tokens, D) each, and the rotation (1, 1, all tokens, D / 2)."""
    return External(far.shape[3] + near.shape[3], partial(_read, far, near, angles))


def _read(far: Tensor, near: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    key, value = (torch.cat([far[part], near[part]], dim=2) for part in (0, 1))
    key = apply_rotary_emb(key, angles[:, :, : key.shape[2]])
    return key.transpose(1, 2), value.transpose(1, 2)


# Without the handle of a processor, which the operation of the other forms has: calls that fill the cache are compiled
# too, torch tells the two apart by tensors that are one object, and would look for the handle when it has gone.
@torch.library.custom_op("accel::attend_behind", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, far: Tensor, near: Tensor, angles: Tensor) -> Tensor:
    external = _external(far, near, angles)
    call = AttentionCall("none", 0, None, dispatched=True, external=external, compiled=True)
    return served(query, key, value, call).contiguous()


@_attend.register_fake
def _(query: Tensor, *others: Tensor) -> Tensor:
    return query.new_empty(query.shape)
