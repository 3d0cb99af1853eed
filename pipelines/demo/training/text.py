"""The built-in model's words and its text encoder."""

import random

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from accel.pipelines.demo.scenes import Scene

TEXT_WIDTH = 128
#: Tokens that the longest caption needs, with its end mark and the unknown words that training adds.
CAPTION_LENGTH = 24
#: A word that no tokenizer of the demo knows, and so any such word.
UNKNOWN = "unheard"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words in lower case: those of all captions and paraphrases, each one token."""
    rng = random.Random(0)
    scenes = [Scene.random(rng) for _ in range(20_000)]
    words = {word for scene in scenes for text in (scene.caption(), scene.paraphrase(rng)) for word in text.split()}
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
        padding_side="right",
    )


def build_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    """Two layers of UMT5, for word order; the words' own vectors do most of the work."""
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
    )
    encoder = UMT5EncoderModel(config)
    with torch.no_grad():
        encoder.shared.weight.normal_(0, 1.0)
    return encoder


def training_caption(scene: Scene, rng: random.Random) -> str:
    """What training reads for a scene: in 10 % of cases nothing, else a paraphrase or the canonical caption.

    In 15 % of the others one to three words that the model does not know are put anywhere, as users will.
    """
    if rng.random() < 0.1:
        return ""
    words = (scene.paraphrase(rng) if rng.random() < 0.7 else scene.caption()).split()
    if rng.random() < 0.15:
        for _ in range(rng.randint(1, 3)):
            words.insert(rng.randint(0, len(words)), UNKNOWN)
    return " ".join(words)


def embed(encoder: UMT5EncoderModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Embeddings (B, L, width) with zeros at the padding, as WanPipeline makes them."""
    hidden = encoder(ids, mask).last_hidden_state
    return hidden * mask[..., None].to(hidden.dtype)
