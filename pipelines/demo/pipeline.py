"""The demo's pipeline classes: diffusers' WanPipeline with the defaults of one size and with early refusals.

The defaults stand in the class, not in the instance, because Python looks `__call__` up there and because
`inspect.signature(pipe.__call__)` is then true. There is one class for each size. Both are called
`WanPipeline`, since other tools go by that name and since `save_pretrained` writes it.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from diffusers.pipelines.wan import pipeline_wan

from accel.errors import AccelWarning
from accel.pipelines import demo
from accel.pipelines.demo.checks import check_numbers, check_output_type, check_prompts, texts
from accel.pipelines.demo.vocabulary import describe_vocabulary, unknown_words, words


def _call_of(size: str) -> Callable[..., Any]:
    """`WanPipeline.__call__` with the defaults of one size; every other parameter is diffusers' own."""
    plain = inspect.signature(pipeline_wan.WanPipeline.__call__)
    ours = {name: value for name, value in demo.defaults(size).items() if name in plain.parameters}
    signature = plain.replace(
        parameters=[p.replace(default=ours.get(p.name, p.default)) for p in plain.parameters.values()]
    )

    @functools.wraps(pipeline_wan.WanPipeline.__call__)
    def call(self: pipeline_wan.WanPipeline, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        patch = self.transformer.config.patch_size
        check_prompts(arguments)
        check_numbers(
            arguments,
            multiple=self.vae_scale_factor_spatial * patch[-1],
            frame_factor=self.vae_scale_factor_temporal,
            longest=self.transformer.config.rope_max_seq_len,
        )
        check_output_type(arguments["output_type"])
        for message in _unread(self.tokenizer, arguments):
            warnings.warn(message, AccelWarning, stacklevel=2)
        return pipeline_wan.WanPipeline.__call__(*bound.args, **bound.kwargs)

    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__doc__ = (
        f"Generate a video as `diffusers.WanPipeline` does, with the defaults of the demo's {size} size.\n\n"
        "Raises AccelError before any work for an empty prompt, for sizes that are not whole tokens and for\n"
        "impossible numbers; warns (AccelWarning) of words that the model does not know or does not read.\n"
    )
    return call


def _unread(tokenizer: Any, arguments: dict[str, Any]) -> list[str]:
    """One line for words that the model does not know, and one for words beyond what it reads of a prompt."""
    prompts = texts(arguments["prompt"])
    if arguments["guidance_scale"] > 1:
        prompts = prompts + texts(arguments["negative_prompt"])
    prompts = [pipeline_wan.prompt_clean(prompt) for prompt in prompts]

    messages = []
    unknown = dict.fromkeys(word for prompt in prompts for word in unknown_words(prompt, tokenizer))
    if unknown:
        named = ", ".join(f'"{word}"' for word in unknown)
        messages.append(f"the demo does not know {named}; it knows {describe_vocabulary(tokenizer)}")
    # The last token that the model reads is the end mark.
    room = arguments["max_sequence_length"] - 1
    cut = [word for prompt in prompts for word in words(prompt, tokenizer)[room:]]
    if cut:
        messages.append(f'the demo reads {room} words of a prompt; "{" ".join(cut)}" is not read')
    return messages


class Standard:
    """128x128 pixels, 65 frames, 2,112 tokens."""

    class WanPipeline(pipeline_wan.WanPipeline):
        __doc__ = pipeline_wan.WanPipeline.__doc__
        __call__ = _call_of("standard")


class Quick:
    """128x128 pixels, 9 frames, 320 tokens."""

    class WanPipeline(pipeline_wan.WanPipeline):
        __doc__ = pipeline_wan.WanPipeline.__doc__
        __call__ = _call_of("quick")


CLASSES: dict[str, type[pipeline_wan.WanPipeline]] = {
    "standard": Standard.WanPipeline,
    "quick": Quick.WanPipeline,
}
