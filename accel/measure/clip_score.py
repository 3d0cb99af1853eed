"""CLIP score: how well a clip goes with its prompt, from a CLIP that lies on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from accel.errors import AccelError
from accel.measure.frames import as_bytes, as_frames

_FRAMES = 8
_TOKENIZERS = ("tokenizer.json", "vocab.json")


class ClipScore:
    """CLIP score (Hessel et al., "CLIPScore: a reference-free evaluation metric for image captioning", EMNLP 2021,
    with the weight 100 that is usual for generated pictures): 100 max(cos, 0), mean over eight frames.

    Args:
        folder: a CLIP as transformers saves it: configuration, safetensors, tokenizer and image processor, such as a
            copy of openai/clip-vit-base-patch16. Figures of different CLIPs cannot be compared. Nothing is downloaded.

    Raises:
        AccelError: no such folder, or no such model in it.
    """

    def __init__(self, folder: str | Path) -> None:
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        place = Path(folder)
        if not (place / "config.json").is_file():
            raise AccelError(
                f"CLIP score needs a folder with a CLIP as transformers saves it, and {place} has no config.json: "
                "name a local copy of, say, openai/clip-vit-base-patch16"
            )
        # Without them transformers makes a tokenizer of no words.
        if not any((place / name).is_file() for name in _TOKENIZERS):
            raise AccelError(f"{place} does not hold a whole CLIP: it has neither {' nor '.join(_TOKENIZERS)}")
        try:
            loaded: Any = CLIPModel.from_pretrained(
                place, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            self._tokenizer = CLIPTokenizer.from_pretrained(place, local_files_only=True)
            self._processor = CLIPImageProcessor.from_pretrained(place, local_files_only=True)
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise AccelError(f"{place} does not hold a whole CLIP: {first}") from error
        model, found = loaded
        missing = sorted(found["missing_keys"])
        if missing:
            raise AccelError(f"{place} does not hold a whole CLIP: {len(missing)} weights are missing, as {missing[0]}")
        self._model = model.eval()

    def __call__(self, clip: Any, prompt: str) -> float:
        """The score, from 0 to 100, of eight frames evenly spread over the clip, the first and the last among them.

        A prompt longer than the text encoder takes (77 tokens) is cut.

        Args:
            clip: a clip (T, H, W, 3) or a picture (H, W, 3), tensor or array, in [0, 1]; values outside are clamped.

        Raises:
            ValueError: another shape, or values that are not finite.
        """
        frames = as_frames(clip)
        chosen = torch.linspace(0, len(frames) - 1, min(_FRAMES, len(frames))).round().long()
        pictures = [Image.fromarray(frame.numpy()) for frame in as_bytes(frames[chosen])]
        longest = self._model.config.text_config.max_position_embeddings
        with torch.inference_mode():
            made = self._model(
                **self._tokenizer([prompt], truncation=True, max_length=longest, return_tensors="pt"),
                **self._processor(pictures, return_tensors="pt"),
            )
        cosines = (made.image_embeds @ made.text_embeds.T).double()
        return 100 * cosines.clamp(min=0).mean().item()
