"""What the processors have in common: the one they stand in for, and the way to `attend`, eager and compiled."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from accel.pipelines.attention.call import Attend, AttentionCall, Text, dense

_LIVE: WeakValueDictionary[int, StandIn] = WeakValueDictionary()
_NUMBERS = itertools.count()


class StandIn:
    """Base of the processors: stands in for `original` and gives its attention to `attend`.

    A form's `__call__` has the parameters of the original's, by name, because modules of diffusers drop the arguments
    that the class of their processor does not name. Copies and pickles of it are those of the original.
    """

    # Where diffusers has the processors that this form computes as; the first is the one that models begin with.
    originals: ClassVar[tuple[str, ...]]
    text: ClassVar[Text]
    dispatched: ClassVar[bool]

    original: Any
    attend: Attend
    layer: int | None

    def __new__(cls, original: Any = None, attend: Attend = dense, layer: int | None = None) -> Any:
        # Diffusers makes a new processor of a module's class when it loads an IP-adapter; it gets a plain one.
        return resolve_name(cls.originals[0])() if original is None else super().__new__(cls)

    def __init__(self, original: Any, attend: Attend = dense, layer: int | None = None) -> None:
        self.original = original
        self.attend = attend
        self.layer = layer
        number = next(_NUMBERS)
        # An input of a compiled graph, where a number would be a constant, and so a graph for every site.
        with torch.inference_mode(False):
            self._handle = torch.tensor(number, device="cpu")
        _LIVE[number] = self

    def __reduce__(self) -> Any:
        return _unchanged, (self.original,)

    @property
    def _attention_backend(self) -> Any:
        # The user's choice, made before or after, is the original's; where it has none this has none.
        return self.original._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.original._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return self.original._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.original._parallel_config = config

    @classmethod
    def refusal(cls, attn: nn.Module) -> str | None:
        """Why the form cannot compute what this module asks for, or None."""
        return None

    def retire(self) -> None:
        """From now on computes as the original does, wherever somebody may have kept it."""
        self.attend = dense

    def run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        text_length: int | None,
        scale: float | None = None,
    ) -> Tensor:
        """Attention (B, S, H, D) through `attend`; the forms end in it. `scale` is for those that give one."""
        if torch.compiler.is_compiling():
            return _attend(query, key, value, mask, self._handle, text_length, scale)
        return self.attend(query, key, value, replace(self.call(mask, text_length), scale=scale))

    def call(self, mask: Tensor | None, text_length: int | None) -> AttentionCall:
        """What `attend` is told."""
        if not self.dispatched:
            return AttentionCall(self.text, text_length, mask, dispatched=False, layer=self.layer)
        return AttentionCall(
            self.text,
            text_length,
            mask,
            dispatched=True,
            # Cosmos's go to the dispatcher without a choice of their own.
            backend=getattr(self.original, "_attention_backend", None),
            parallel=getattr(self.original, "_parallel_config", None),
            layer=self.layer,
        )


def _unchanged(original: Any) -> Any:
    return original


@torch.library.custom_op("accel::attend", mutates_args=())
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    handle: Tensor,
    text_length: int | None,
    scale: float | None,
) -> Tensor:
    processor = _LIVE[int(handle)]
    output = processor.attend(query, key, value, replace(processor.call(mask, text_length), scale=scale))
    return output.contiguous()


@_attend.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    handle: Tensor,
    text_length: int | None,
    scale: float | None,
) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))
