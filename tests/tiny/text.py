"""Character-level tokenizers and two-layer text encoders for the tiny pipelines, made without any file.

Every printable ASCII character is a token of its own, so that no two prompts get the same embeddings.
The encoder builders draw from the global random state: call them inside `weights.seeded`.
"""

import string
from typing import Any

from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LlamaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.t5gemma2.configuration_t5gemma2 import T5Gemma2EncoderConfig
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

CHARACTERS = string.ascii_letters + string.digits + string.punctuation
WORD_START = "\u2581"
HEADS, FEED_FORWARD, LAYERS = 4, 48, 2


def t5_tokenizer(max_length: int = 64) -> T5Tokenizer:
    """Unigram over single characters (T5 and UMT5): pad 0, eos 1, unk 2."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (WORD_START, -2.0)]
    vocab = special + [(character, -3.0) for character in CHARACTERS]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=max_length)


def clip_tokenizer(max_length: int = 77) -> CLIPTokenizer:
    """Byte-pair encoding without merges: each character in its plain and in its end-of-word form."""
    tokens = [
        "<|startoftext|>",
        "<|endoftext|>",
        *CHARACTERS,
        *(character + "</w>" for character in CHARACTERS),
    ]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=max_length)


def llama_tokenizer(max_length: int = 512) -> LlamaTokenizer:
    """Single characters, padded on the right, as HunyuanVideo's language model expects them."""
    tokens = ["<unk>", "<s>", "</s>", "<pad>", WORD_START, *CHARACTERS]
    vocab = {token: index for index, token in enumerate(tokens)}
    return LlamaTokenizer(vocab=vocab, merges=[], pad_token="<pad>", model_max_length=max_length, padding_side="right")


def qwen_tokenizer(max_length: int = 512) -> Qwen2Tokenizer:
    """Single characters without marks of begin and end, padded on the right; a space is a character like any other.

    Of a chat, it reads what the user says, behind a mark.
    """
    vocab = {token: index for index, token in enumerate(["<|endoftext|>", "\u0120", *CHARACTERS])}
    said = "{{ m.content if m.content is string else m.content[0].text }}"
    template = "{% for m in messages if m.role == 'user' %}>" + said + "{% endfor %}"
    return Qwen2Tokenizer(
        vocab=vocab, merges=[], model_max_length=max_length, padding_side="right", chat_template=template
    )


def t5_encoder(tokenizer: T5Tokenizer | ByT5Tokenizer, width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // HEADS,
        d_ff=FEED_FORWARD,
        num_layers=LAYERS,
        num_heads=HEADS,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T5EncoderModel(config)


def umt5_encoder(tokenizer: T5Tokenizer, width: int) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // HEADS,
        d_ff=FEED_FORWARD,
        num_layers=LAYERS,
        num_heads=HEADS,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return UMT5EncoderModel(config)


def t5gemma_encoder(tokenizer: T5Tokenizer, width: int, vision: dict[str, Any]) -> T5Gemma2Encoder:
    """With eyes as `vision` says, whose tokens it reads singly."""
    text_config = {
        "vocab_size": len(tokenizer) + 2,
        "hidden_size": width,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": width // HEADS,
        "query_pre_attn_scalar": width // HEADS,
        "initializer_range": width**-0.5,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
    }
    config = T5Gemma2EncoderConfig(
        text_config=text_config,
        vision_config=vision,
        mm_tokens_per_image=(vision["image_size"] // vision["patch_size"]) ** 2,
        eoi_token_index=len(tokenizer),
        image_token_index=len(tokenizer) + 1,
    )
    config.text_config.dropout_rate = 0.0
    return T5Gemma2Encoder(config, eoi_token_index=len(tokenizer))


def _clip_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=FEED_FORWARD,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        projection_dim=width,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def clip_encoder(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModel:
    return CLIPTextModel(_clip_config(tokenizer, width))


def projected_clip_encoder(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(_clip_config(tokenizer, width))


def llama_config(tokenizer: LlamaTokenizer, width: int) -> LlamaConfig:
    """Three layers, because HunyuanVideo reads the hidden state two layers before the last."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=FEED_FORWARD,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        num_hidden_layers=3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=width**-0.5,
    )


def llama_encoder(tokenizer: LlamaTokenizer, width: int) -> LlamaModel:
    return LlamaModel(llama_config(tokenizer, width))


def llama_writer(tokenizer: LlamaTokenizer, width: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(llama_config(tokenizer, width))


def qwen_vl_encoder(tokenizer: Qwen2Tokenizer, width: int) -> Qwen2_5_VLForConditionalGeneration:
    """With eyes of one layer, which nothing here looks through."""
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    text_config = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        "initializer_range": width**-0.5,
        **ids,
    }
    vision_config = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": width,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(text_config=text_config, vision_config=vision_config, **ids)
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen3_encoder(tokenizer: Qwen2Tokenizer, width: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=width // HEADS,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=width**-0.5,
    )
    return Qwen3ForCausalLM(config)
