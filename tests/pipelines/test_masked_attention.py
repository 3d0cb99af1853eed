"""Stand-ins of forms whose pipelines pass masks, with masks: the same bits as diffusers' own processors."""

from __future__ import annotations

import copy

import torch

from accel.pipelines.attention import processor_for
from tests.stand_ins import Spy, attention, built


def test_a_mask_over_the_text_of_cogview4_gives_the_bits_of_diffusers() -> None:
    module = copy.deepcopy(attention(built("cogview4")[0])[0].module)
    image, text = torch.randn(2, 20, 128), torch.randn(2, 6, 128)
    given = {"encoder_hidden_states": text, "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])}
    spy = Spy()
    with torch.no_grad():
        expected = module(image, **given)
        module.processor = type(processor_for(attention(built("cogview4")[0])[0]))(module.processor, spy)
        output = module(image, **given)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(output, expected, strict=True))
    (call,) = spy.calls
    assert call.mask is not None and call.mask.shape == (2, 1, 26, 26) and call.mask.is_floating_point()
