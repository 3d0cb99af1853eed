"""The words that the demo reads, in groups, and the words of a prompt that it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accel.pipelines.demo.scenes import BACKGROUNDS, COLORS, MOTIONS, SHAPES, TEXTURES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GROUPS: dict[str, tuple[str, ...]] = {
    "colours": tuple(COLORS),
    "shapes": SHAPES,
    "motions": (*MOTIONS, "grows", "shrinks", "moving", "moves", "going", "sliding", "drifting"),
    "backgrounds": tuple(BACKGROUNDS),
    "textures": TEXTURES,
}


def words(text: str, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The pieces of a text that become one token each: words and runs of punctuation, in lower case."""
    backend = tokenizer.backend_tokenizer
    normal = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
    return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]


def unknown_words(prompt: str, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The words of a prompt that the tokenizer turns into its unknown token, each once, in their order.

    Punctuation is named too: the model has never seen any, and reads it as a word that it does not know. A
    tokenizer of whole words is expected, such as the demo's.
    """
    known = tokenizer.get_vocab()
    return list(dict.fromkeys(word for word in words(prompt, tokenizer) if word not in known))


def describe_vocabulary(tokenizer: PreTrainedTokenizerFast) -> str:
    """All words that the tokenizer knows, on one line: those of each group in `GROUPS`, then the others."""
    known = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    groups = {name: [word for word in group if word in known] for name, group in GROUPS.items()}
    groups["other words"] = sorted(known.difference(*GROUPS.values()))
    return "; ".join(f"{name}: {', '.join(group)}" for name, group in groups.items() if group)
